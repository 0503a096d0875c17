// A loss and its gradient from C++: a safetensors file out, a safetensors file back, with libcurl.
//
//     g++ -std=c++17 client/examples/cpp/evaluate.cpp -o evaluate -lcurl
//     ./evaluate [http://127.0.0.1:8000]
//
// Needs libcurl's headers (on Debian: libcurl4-openssl-dev), GCC 11 or Clang 14, and a little-endian machine. A service
// that asks for a key gets the one in LOSSD_API_KEY.
#include <charconv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <curl/curl.h>

const std::string focal = R"({"loss": {"name": "focal", "gamma": 2.0}, "outputs": ["loss", "gradient"]})";

struct Answer {
  double loss;
  std::vector<float> gradient;
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
  std::ostringstream header;
  std::string data;
  header << R"({"__metadata__": {"request": )" << std::quoted(request) << "}";
  for (const Tensor& tensor : tensors) {
    header << ", " << std::quoted(tensor.name) << R"(: {"dtype": )" << std::quoted(tensor.dtype) << R"(, "shape": [)";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) header << (i ? ", " : "") << tensor.shape[i];
    header << R"(], "data_offsets": [)" << data.size() << ", " << data.size() + tensor.data.size() << "]}";
    data += tensor.data;
  }
  header << "}";
  std::string text = header.str();
  text.append(-text.size() & 7, ' ');
  const std::uint64_t length = text.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + text + data;
}
// #endregion

// #region decode
// The answer: a safetensors file too. Its one tensor is the gradient; the loss is in the header.
Answer decode(const std::string& body) {
  std::uint64_t length = 0;
  if (body.size() >= 8) std::memcpy(&length, body.data(), 8);
  if (body.size() < 8 || body.size() - 8 < length) throw std::runtime_error("the answer is cut off");
  const std::string header = body.substr(8, length);
  // The result is JSON inside a string of the header, hence the backslashes. A JSON library would read all of it.
  const std::string key = R"(\"loss\":)";
  const std::size_t at = header.find(key);
  if (at == std::string::npos) throw std::runtime_error("no loss in " + header);
  Answer answer{std::stod(header.substr(at + key.size())), std::vector<float>((body.size() - 8 - length) / 4)};
  std::memcpy(answer.gradient.data(), body.data() + 8 + length, answer.gradient.size() * 4);
  return answer;
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
  std::cout << "loss " << shortest(answer.loss) << "\ngradient";
  for (const float entry : answer.gradient) std::cout << ' ' << shortest(entry);
  std::cout << '\n';

  // From the definition, mean of -(1 - p)^2 log p with p the softmax at the target: the loss, the gradient's first row.
  const double loss = 0.0285387, row[] = {-0.0517822, 0.0368145, 0.0149677};
  bool right = answer.gradient.size() == prediction.size() && std::abs(answer.loss - loss) < 1e-6;
  for (int i = 0; right && i < 3; ++i) right = std::abs(answer.gradient[i] - row[i]) < 1e-6;
  if (!right) throw std::runtime_error("this is not the focal loss");
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
