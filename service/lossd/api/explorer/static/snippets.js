/** The request as code for a shell, Python and JavaScript; each runs unchanged. */

import { body, dtypeName, inJson } from "./asking.js";
import { elementCount, MEDIA_TYPE } from "./safetensors.js";

export const FILE = "request.safetensors";
const SMALL = 2000;

/** Whether a request is short enough for a command; a longer one is sent from a file. */
const isSmall = ({ inputs }) =>
  Object.values(inputs).every(({ dtype }) => dtype !== "BF16") && elements(inputs) <= SMALL;
const elements = (inputs) => Object.values(inputs).reduce((sum, { shape }) => sum + elementCount(shape), 0);

/**
 * @param request `{ loss, inputs: tensors, outputs, … }`
 * @returns `{ curl, python, javascript }`, each `{ text, needsFile }`
 */
export function snippets(request, { url, form, keyed }) {
  const small = isSmall(request);
  const inline = small && form === "json";
  const of = { url: url.replace(/\/+$/, ""), keyed, request, text: inline && JSON.stringify(body(request)) };
  return {
    curl: { text: curl(of), needsFile: !inline },
    python: { text: python(of, small), needsFile: !small },
    javascript: { text: javascript(of), needsFile: !inline },
  };
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function curl({ url, keyed, text }) {
  const key = keyed ? ` \\\n  -H "X-API-Key: $LOSSD_API_KEY"` : "";
  const sent = text
    ? `-H 'Content-Type: application/json' \\\n  -d ${quoted(text)}`
    : `-H 'Content-Type: ${MEDIA_TYPE}' \\\n  -H 'Accept: application/json' \\\n  --data-binary @${FILE}`;
  return `curl -s ${quoted(`${url}/v1/evaluate`)}${key} \\\n  ${sent}\n`;
}

function javascript({ url, keyed, text }) {
  const headers = {
    "Content-Type": text ? "application/json" : MEDIA_TYPE,
    ...(!text && { Accept: "application/json" }),
  };
  const lines = Object.entries(headers).map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  if (keyed) lines.push('"X-API-Key": process.env.LOSSD_API_KEY');
  const from = text ? "" : 'import { readFile } from "node:fs/promises";\n\n';
  return `${from}const response = await fetch(${JSON.stringify(`${url}/v1/evaluate`)}, {
  method: "POST",
  headers: { ${lines.join(", ")} },
  body: ${text ? `JSON.stringify(${text})` : `await readFile("${FILE}")`},
});
const answer = await response.json();
if (!response.ok) throw new Error(answer.detail);
console.log(answer.loss);
console.log(answer);
`;
}

function python({ url, keyed, request: { loss, inputs, ...rest } }, small) {
  const { name, ...parameters } = loss;
  const options = Object.entries(rest)
    .map(([key, value]) => `        ${key}=${literal(value)},\n`)
    .join("");
  const imports = [
    keyed && "import os",
    !small && "from pathlib import Path",
    (keyed || !small) && "",
    small && "import numpy as np\n",
    "from lossd_client import LossClient",
    !small && "from lossd_client.wire import safetensors",
  ];
  const arrays = small
    ? `inputs = {\n${Object.entries(inputs)
        .map(([key, of]) => `    ${JSON.stringify(key)}: ${array(of)},\n`)
        .join("")}}`
    : `tensors, _ = safetensors.decode(Path("${FILE}").read_bytes())\ninputs = {name: tensor.numpy() for name, tensor in tensors.items()}`;
  return `${imports.filter((line) => line !== false && line !== undefined).join("\n")}

${arrays}
with LossClient(${JSON.stringify(url)}${keyed ? ', api_key=os.environ["LOSSD_API_KEY"]' : ""}) as lossd:
    result = lossd.evaluate(
        ${literal(Object.keys(parameters).length ? loss : name)},
        inputs=inputs,
${options}    )
print(result.loss)
print(result.gradients)
print(result.metrics)
`;
}

function array(of) {
  const value = inJson(of);
  if (Array.isArray(value)) return `np.array(${literal(value)}, np.${dtypeName(of.dtype)})`;
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
