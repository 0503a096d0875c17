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
// A tensor is named elements in row-major order, a slice such as []float32.
type tensor struct {
	name  string
	dtype string // F64, F32, F16, BF16, I64, I32, I16, I8, U8 or BOOL
	shape []int
	data  any
}

// encode writes tensors as a safetensors file: length of the header, header, elements. Give wider elements first; then
// every tensor starts on a multiple of its element's size.
func encode(request string, tensors ...tensor) ([]byte, error) {
	header := map[string]any{"__metadata__": map[string]string{"request": request}}
	var data, file bytes.Buffer
	for _, t := range tensors {
		begin := data.Len()
		if err := binary.Write(&data, binary.LittleEndian, t.data); err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		header[t.name] = map[string]any{"dtype": t.dtype, "shape": t.shape, "data_offsets": [2]int{begin, data.Len()}}
	}
	text, err := json.Marshal(header)
	if err != nil {
		return nil, err
	}
	text = append(text, strings.Repeat(" ", -len(text)&7)...)
	binary.Write(&file, binary.LittleEndian, uint64(len(text))) // a buffer takes everything
	file.Write(text)
	file.Write(data.Bytes())
	return file.Bytes(), nil
}

// #endregion

// #region decode
type result struct {
	Loss      float64
	Reduction struct{ Numerator, Denominator float64 }
}

// decode reads the answer, a safetensors file too: the result is JSON in its metadata, its tensors are the gradients,
// each a []float64 or a []float32.
func decode(body []byte) (result result, gradients map[string]any, err error) {
	if len(body) < 8 || uint64(len(body)-8) < binary.LittleEndian.Uint64(body) {
		return result, nil, fmt.Errorf("the answer is not a safetensors file: %.80q", body)
	}
	start := 8 + binary.LittleEndian.Uint64(body)
	var header map[string]struct {
		Result  string
		Dtype   string
		Offsets [2]uint64 `json:"data_offsets"`
	}
	if err = json.Unmarshal(body[8:start], &header); err != nil {
		return
	}
	if err = json.Unmarshal([]byte(header["__metadata__"].Result), &result); err != nil {
		return
	}
	gradients = map[string]any{}
	for name, entry := range header {
		if name == "__metadata__" {
			continue
		}
		data := body[start:][entry.Offsets[0]:entry.Offsets[1]]
		var elements any = make([]float32, len(data)/4)
		if entry.Dtype == "F64" { // a gradient of float64 inputs
			elements = make([]float64, len(data)/8)
		}
		if err = binary.Read(bytes.NewReader(data), binary.LittleEndian, elements); err != nil {
			return
		}
		gradients[strings.TrimPrefix(name, "gradient.")] = elements
	}
	return
}

// #endregion

// #region post
func evaluate(url, request string, tensors ...tensor) (result, map[string]any, error) {
	file, err := encode(request, tensors...)
	if err != nil {
		return result{}, nil, err
	}
	post, err := http.NewRequest("POST", url+"/v1/evaluate", bytes.NewReader(file))
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
	// A refusal is a JSON document that says what is wrong, where, and how to fix it.
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
	result, gradients, err := evaluate(url, request,
		tensor{"target", "I64", []int{2}, target}, tensor{"prediction", "F32", []int{2, 3}, prediction})
	if err != nil {
		log.Fatal(err)
	}
	gradient, _ := gradients["prediction"].([]float32)
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
