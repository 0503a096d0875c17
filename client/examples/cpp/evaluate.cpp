// A loss and its gradient from C++: a safetensors file out, a safetensors file back, with libcurl and nlohmann/json.
//
//     g++ -std=c++17 client/examples/cpp/evaluate.cpp -o evaluate -lcurl
//     ./evaluate [http://127.0.0.1:8000]
//
// Needs the headers of libcurl and of nlohmann/json (on Debian: libcurl4-openssl-dev, nlohmann-json3-dev), GCC 11 or
// Clang 14, and a little-endian machine. A service that asks for a key gets the one in LOSSD_API_KEY.
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <curl/curl.h>
#include <nlohmann/json.hpp>

using nlohmann::json;

const std::string focal = R"({"loss": {"name": "focal", "gamma": 2.0}, "outputs": ["loss", "gradient"]})";

// The answer's JSON, and the bytes of its tensors by name, such as gradient.prediction.
struct Answer {
  json result;
  std::map<std::string, std::string> tensors;
};

// #region encode
// A tensor by name: its elements in row-major order. The dtype is F64, F32, I64, I32, U8 or BOOL.
struct Tensor {
  std::string name, dtype;
  std::vector<std::size_t> shape;
  std::string data;
};

template <typename T>
std::string bytes(const std::vector<T>& elements) {
  return {reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(T)};
}

// Tensors as a safetensors file: length of the header, header, elements. Give wider elements first; then every tensor
// starts on a multiple of its element's size.
std::string encode(const std::string& request, const std::vector<Tensor>& tensors) {
  json header;
  std::string data;
  header["__metadata__"]["request"] = request;
  for (const Tensor& tensor : tensors) {
    const std::size_t begin = data.size();
    data += tensor.data;
    header[tensor.name] = {{"dtype", tensor.dtype}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.append(-text.size() & 7, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
}
// #endregion

// #region decode
// The answer: a safetensors file too, whose result is JSON in a string of the header.
Answer decode(const std::string& body) {
  std::uint64_t length = 0;
  if (body.size() >= 8) std::memcpy(&length, body.data(), 8);
  if (body.size() < 8 || body.size() - 8 < length) throw std::runtime_error("the answer is cut off");
  const json header = json::parse(body.substr(8, length));
  Answer answer;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      answer.result = json::parse(value.at("result").get<std::string>());
    } else {
      const std::size_t begin = value.at("data_offsets").at(0), end = value.at("data_offsets").at(1);
      answer.tensors[name] = body.substr(8 + length + begin, end - begin);
    }
  }
  return answer;
}

std::vector<float> floats(const std::string& bytes) {
  std::vector<float> elements(bytes.size() / sizeof(float));
  std::memcpy(elements.data(), bytes.data(), elements.size() * sizeof(float));
  return elements;
}
// #endregion

// #region post
std::size_t receive(char* bytes, std::size_t, std::size_t count, void* body) {
  static_cast<std::string*>(body)->append(bytes, count);
  return count;
}

Answer evaluate(const std::string& url, const std::string& request, const std::vector<Tensor>& tensors) {
  std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(), curl_easy_cleanup);
  curl_slist* list = curl_slist_append(nullptr, "Content-Type: application/vnd.safetensors");
  if (const char* key = std::getenv("LOSSD_API_KEY"))
    list = curl_slist_append(list, ("Authorization: Bearer " + std::string(key)).c_str());
  std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> headers(list, curl_slist_free_all);
  const std::string file = encode(request, tensors);
  std::string body;
  curl_easy_setopt(curl.get(), CURLOPT_URL, (url + "/v1/evaluate").c_str());
  curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, headers.get());
  curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDS, file.data());
  curl_easy_setopt(curl.get(), CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(file.size()));
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, receive);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &body);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT, 60L);
  if (const CURLcode code = curl_easy_perform(curl.get())) throw std::runtime_error(curl_easy_strerror(code));
  long status = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  // A refusal is a JSON document that says what is wrong, where, and how to fix it.
  if (status != 200) throw std::runtime_error(body);
  return decode(body);
}
// #endregion

// As few digits as tell a number from its neighbours.
template <typename T>
std::string shortest(T number) {
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

int main(int count, char** arguments) try {
  const std::string url = count > 1 ? arguments[1] : "http://127.0.0.1:8000";
  const std::vector<float> prediction{2.0f, 1.0f, 0.1f, 0.5f, 2.5f, 0.3f};
  const std::vector<std::int64_t> target{0, 1};
  const Answer answer = evaluate(
      url, focal, {{"target", "I64", {2}, bytes(target)}, {"prediction", "F32", {2, 3}, bytes(prediction)}});
  const double loss = answer.result.at("loss");
  const std::vector<float> gradient = floats(answer.tensors.at("gradient.prediction"));
  std::cout << "loss " << shortest(loss) << "\ngradient";
  for (const float entry : gradient) std::cout << ' ' << shortest(entry);
  std::cout << '\n';

  // From the definition, mean of -(1 - p)^2 log p with p the softmax at the target: the loss, the gradient's first row.
  const double expected = 0.0285387, row[] = {-0.0517822, 0.0368145, 0.0149677};
  bool right = gradient.size() == prediction.size() && std::abs(loss - expected) < 1e-6;
  for (int i = 0; right && i < 3; ++i) right = std::abs(gradient[i] - row[i]) < 1e-6;
  if (!right) throw std::runtime_error("this is not the focal loss");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
