/** The request as code in six languages; each runs unchanged. */

import { body, dtypeName, inJson } from "./evaluation.js";
import { elementCount, MEDIA_TYPE } from "./safetensors.js";

export const FILE = "request.safetensors";
const SMALL = 2000;

/** Whether a request is short enough for a command; a longer one is sent from a file. */
const isSmall = ({ inputs }) =>
  Object.values(inputs).every((input) => input.dtype !== "BF16" && !(count(input) > SMALL));
const count = ({ shape }) => shape && elementCount(shape);

export const LANGUAGES = {
  curl: "curl",
  python: "Python",
  javascript: "JavaScript",
  java: "Java",
  go: "Go",
  cpp: "C++",
};

/**
 * @param request `{ loss or task, inputs: tensors or nested lists by name, outputs, … }`
 * @returns the code by language, each `{ text, needsFile }`
 */
export function snippets(request, { url, form, keyed }) {
  const small = isSmall(request);
  const inline = small && form === "json";
  const parts = {
    address: `${url.replace(/\/+$/, "")}/v1/evaluate`,
    shown: request.task ? "metrics" : "loss",
    text: inline && JSON.stringify(body(request)),
    headers: {
      "Content-Type": inline ? "application/json" : MEDIA_TYPE,
      ...(!inline && { Accept: "application/json" }),
    },
    keyed,
  };
  const code = (text) => ({ text, needsFile: !inline });
  return {
    curl: code(curl(parts)),
    python: { text: python({ url: url.replace(/\/+$/, ""), keyed, request }, small), needsFile: !small },
    javascript: code(javascript(parts)),
    java: code(java(parts)),
    go: code(go(parts)),
    cpp: code(cpp(parts)),
  };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const each = (headers, line) =>
  Object.entries(headers)
    .map((entry) => line(...entry.map((part) => JSON.stringify(part))))
    .join("");

function curl({ address, keyed, text, headers }) {
  const lines = [
    `curl -s ${quoted(address)}`,
    keyed && '-H "X-API-Key: $LOSSD_API_KEY"',
    ...Object.entries(headers).map(([name, value]) => `-H ${quoted(`${name}: ${value}`)}`),
    text ? `-d ${quoted(text)}` : `--data-binary @${FILE}`,
  ];
  return `${lines.filter(Boolean).join(" \\\n  ")}\n`;
}

function javascript({ address, keyed, text, headers, shown }) {
  const key = keyed ? '    "X-API-Key": process.env.LOSSD_API_KEY,\n' : "";
  const from = text ? "" : 'import { readFile } from "node:fs/promises";\n\n';
  return `${from}const response = await fetch(${JSON.stringify(address)}, {
  method: "POST",
  headers: {
${each(headers, (name, value) => `    ${name}: ${value},\n`)}${key}  },
  body: ${text ? `JSON.stringify(${text})` : `await readFile("${FILE}")`},
});
const answer = await response.json();
if (!response.ok) throw new Error(answer.detail);
console.log(answer.${shown});
console.log(answer);
`;
}

function java({ address, keyed, text, headers }) {
  const key = keyed ? '        .header("X-API-Key", System.getenv("LOSSD_API_KEY"))\n' : "";
  const block = text && `ofString("""\n            ${text.replaceAll("\\", "\\\\")}""")`;
  return `import java.net.URI;
import java.net.http.*;
import java.nio.file.Path;

public class Main {
  public static void main(String[] args) throws Exception {
    var request = HttpRequest.newBuilder(URI.create(${JSON.stringify(address)}))
${each(headers, (name, value) => `        .header(${name}, ${value})\n`)}${key}        .POST(HttpRequest.BodyPublishers.${block || `ofFile(Path.of("${FILE}"))`})
        .build();
    var client = HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build();
    var response = client.send(request, HttpResponse.BodyHandlers.ofString());
    if (response.statusCode() != 200) throw new RuntimeException(response.body());
    System.out.println(response.body());
  }
}
`;
}

function go({ address, keyed, text, headers }) {
  const imports = [text ? "strings" : "bytes", "fmt", "io", "log", "net/http", (keyed || !text) && "os"];
  const check = "\tif err != nil {\n\t\tlog.Fatal(err)\n\t}\n";
  const raw = text && (text.includes("`") ? JSON.stringify(text) : `\`${text}\``);
  return `package main

import (
${imports
  .filter(Boolean)
  .sort()
  .map((name) => `\t"${name}"\n`)
  .join("")})

func main() {
${text ? `\tbody := strings.NewReader(${raw})` : `\tfile, err := os.ReadFile("${FILE}")\n${check}\tbody := bytes.NewReader(file)`}
\trequest, err := http.NewRequest("POST", ${JSON.stringify(address)}, body)
${check}${each(headers, (name, value) => `\trequest.Header.Set(${name}, ${value})\n`)}${keyed ? '\trequest.Header.Set("X-API-Key", os.Getenv("LOSSD_API_KEY"))\n' : ""}\tresponse, err := http.DefaultClient.Do(request)
${check}\tdefer response.Body.Close()
\tanswer, err := io.ReadAll(response.Body)
${check}\tif response.StatusCode != 200 {
\t\tlog.Fatal(string(answer))
\t}
\tfmt.Println(string(answer))
}
`;
}

function cpp({ address, keyed, text, headers }) {
  const lines = Object.entries(headers).map(([name, value]) => JSON.stringify(`${name}: ${value}`));
  if (keyed) lines.push('std::string("X-API-Key: ").append(std::getenv("LOSSD_API_KEY")).c_str()');
  const from = `std::ifstream file("${FILE}", std::ios::binary);
  const std::string body{std::istreambuf_iterator<char>(file), {}};`;
  return `// g++ main.cpp -lcurl
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>

#include <curl/curl.h>

static size_t append(char* data, size_t, size_t size, void* text) {
  static_cast<std::string*>(text)->append(data, size);
  return size;
}

int main() {
  ${text ? `const std::string body = R"json(${text})json";` : from}
  std::string answer;
  CURL* curl = curl_easy_init();
  curl_slist* headers = nullptr;
${lines.map((line) => `  headers = curl_slist_append(headers, ${line});\n`).join("")}  curl_easy_setopt(curl, CURLOPT_URL, ${JSON.stringify(address)});
  curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, static_cast<long>(body.size()));
  curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body.data());
  curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, append);
  curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
  const CURLcode failed = curl_easy_perform(curl);
  long status = 0;
  curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
  (status == 200 ? std::cout : std::cerr) << (failed ? curl_easy_strerror(failed) : answer) << std::endl;
  curl_slist_free_all(headers);
  curl_easy_cleanup(curl);
  return status != 200;
}
`;
}

function python({ url, keyed, request: { loss, task, inputs, ...rest } }, small) {
  const options = Object.entries(rest)
    .map(([key, value]) => `        ${key}=${literal(value)},\n`)
    .join("");
  const arrays = Object.values(inputs);
  const imports = [
    keyed && "import os",
    !small && "from pathlib import Path",
    (keyed || !small) && "",
    small && arrays.some(({ dtype }) => dtype) && "import numpy as np\n",
    "from lossd_client import LossClient",
    !small && "from lossd_client.wire import safetensors",
  ];
  const lines = small
    ? `inputs = {\n${Object.entries(inputs)
        .map(([key, input]) => `    ${JSON.stringify(key)}: ${array(input)},\n`)
        .join("")}}`
    : `tensors, _ = safetensors.decode(Path("${FILE}").read_bytes())\ninputs = {name: tensor.numpy() for name, tensor in tensors.items()}`;
  return `${imports.filter((line) => line !== false && line !== undefined).join("\n")}

${lines}
with LossClient(${JSON.stringify(url)}${keyed ? ', api_key=os.environ["LOSSD_API_KEY"]' : ""}) as lossd:
    result = lossd.evaluate(
        ${loss ? lossAlone(loss) : `task=${literal(task)}`},
        inputs=inputs,
${options}    )
${loss ? "print(result.loss)\nprint(result.gradients)\n" : ""}${rest.outputs?.includes("hessian") ? "print(result.hessians)\n" : ""}print(result.metrics)
`;
}

const lossAlone = ({ name, ...parameters }) => literal(Object.keys(parameters).length ? { name, ...parameters } : name);

function array(input) {
  if (!input.dtype) return literal(input);
  const value = inJson(input);
  if (Array.isArray(value)) return `np.array(${literal(value)}, np.${dtypeName(input.dtype)})`;
  return `np.frombuffer(__import__("base64").b64decode("${value.data}"), np.${value.dtype === "bool" ? "bool_" : value.dtype}).reshape(${literal(value.shape)})`;
}

const NAMES = { NaN: "np.nan", Infinity: "np.inf", "-Infinity": "-np.inf" };

function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "string") return NAMES[value] ?? JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value === "object")
    return `{${Object.entries(value)
      .map(([key, entry]) => `${JSON.stringify(key)}: ${literal(entry)}`)
      .join(", ")}}`;
  return String(value);
}
