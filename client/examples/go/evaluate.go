// A loss and its gradient from Go: a safetensors file out, a safetensors file back, the standard library alone.
//
//	go run client/examples/go/evaluate.go [http://127.0.0.1:8000]
//
// Needs Go 1.19 or newer. A service that asks for a key gets the one in LOSSD_API_KEY.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	mediaType = "application/vnd.safetensors"
	request   = `{"loss": {"name": "focal", "gamma": 2.0}, "outputs": ["loss", "gradient"]}`
)

// #region encode
// encode writes scores (one row a sample) and class indices as a safetensors file: length of the header, header,
// elements.
func encode(prediction []float32, target []int64) []byte {
	rows, wide := len(target), 8*len(target)
	// The wider elements first, and spaces behind the header: every tensor starts on a multiple of its element's size.
	header := fmt.Sprintf(`{"__metadata__": {"request": %q},
		"target": {"dtype": "I64", "shape": [%d], "data_offsets": [0, %d]},
		"prediction": {"dtype": "F32", "shape": [%d, %d], "data_offsets": [%d, %d]}}`,
		request, rows, wide, rows, len(prediction)/rows, wide, wide+4*len(prediction))
	header += strings.Repeat(" ", -len(header)&7)
	var file bytes.Buffer
	for _, part := range []any{uint64(len(header)), []byte(header), target, prediction} {
		binary.Write(&file, binary.LittleEndian, part) // a buffer takes everything
	}
	return file.Bytes()
}

// #endregion

// #region decode
type result struct {
	Loss      float64
	Reduction struct{ Numerator, Denominator float64 }
}

// decode reads the answer, a safetensors file too: the result is JSON in its metadata, its one tensor the gradient.
func decode(body []byte) (result result, gradient []float32, err error) {
	if len(body) < 8 || uint64(len(body)-8) < binary.LittleEndian.Uint64(body) {
		return result, nil, fmt.Errorf("the answer is no safetensors file: %.80q", body)
	}
	start := 8 + binary.LittleEndian.Uint64(body)
	var header struct {
		Metadata struct{ Result string } `json:"__metadata__"`
		Gradient struct {
			Offsets [2]uint64 `json:"data_offsets"`
		} `json:"gradient.prediction"`
	}
	if err = json.Unmarshal(body[8:start], &header); err != nil {
		return
	}
	if err = json.Unmarshal([]byte(header.Metadata.Result), &result); err != nil {
		return
	}
	data := body[start:][header.Gradient.Offsets[0]:header.Gradient.Offsets[1]]
	gradient = make([]float32, len(data)/4)
	err = binary.Read(bytes.NewReader(data), binary.LittleEndian, gradient)
	return
}

// #endregion

// #region post
func evaluate(url string, prediction []float32, target []int64) (result, []float32, error) {
	post, err := http.NewRequest("POST", url+"/v1/evaluate", bytes.NewReader(encode(prediction, target)))
	if err != nil {
		return result{}, nil, err
	}
	post.Header.Set("Content-Type", mediaType)
	if key := os.Getenv("LOSSD_API_KEY"); key != "" {
		post.Header.Set("Authorization", "Bearer "+key)
	}
	client := http.Client{Timeout: time.Minute}
	response, err := client.Do(post)
	if err != nil {
		return result{}, nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return result{}, nil, err
	}
	// A refusal is a JSON document that says what is wrong, where, and how to mend it.
	if response.StatusCode != http.StatusOK {
		return result{}, nil, fmt.Errorf("%s", body)
	}
	return decode(body)
}

// #endregion

func main() {
	log.SetFlags(0)
	url := "http://127.0.0.1:8000"
	if len(os.Args) > 1 {
		url = os.Args[1]
	}
	prediction, target := []float32{2.0, 1.0, 0.1, 0.5, 2.5, 0.3}, []int64{0, 1}
	result, gradient, err := evaluate(url, prediction, target)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("loss", result.Loss)
	fmt.Println("gradient", gradient)

	// From the definition, mean of -(1 - p)^2 log p with p the softmax at the target: the loss, the gradient's first row.
	right := len(gradient) == len(prediction) && math.Abs(result.Loss-0.0285387) < 1e-6
	for i, expected := range []float64{-0.0517822, 0.0368145, 0.0149677} {
		right = right && math.Abs(float64(gradient[i])-expected) < 1e-6
	}
	if !right {
		log.Fatal("this is not the focal loss")
	}
}
