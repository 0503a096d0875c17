/** The service, asked as any client asks it. */

import { decode, encode, MEDIA_TYPE } from "./safetensors.js";
import { doubt } from "./status.js";

const KEY = "lossd-api-key";
const PASSING = new Set([0, 429, 502, 503, 504]);
let keyQuestion = null;
let askForKey = () => Promise.resolve(null);

/** An error the service answered with (RFC 9457), or `unreachable`, the one it could not. */
export class Problem extends Error {
  constructor({ title, detail, type, status, errors = [] }) {
    super(detail || title || `The service answers with status ${status}.`);
    Object.assign(this, { title: title || `Status ${status}`, type, status, errors });
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return PASSING.has(this.status);
  }

  /** Where its type is explained, from the page; a proxy may serve both below a path of its own. */
  get page() {
    const slug = /\/problems\/([\w-]+)$/.exec(this.type ?? "")?.[1];
    return slug && `problems/${slug}`;
  }
}

const unreachable = () => new Problem({ title: "Unreachable", detail: "The service does not answer.", status: 0 });

/** Who asks the reader for a key when the service wants one: a function that resolves to it, or to null. */
export function onKeyNeeded(ask) {
  askForKey = ask;
}

export const keyIsSet = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** The answer at a path, which is taken relative to the page, as proxies want it; throws a Problem where it is one. */
export async function request(path, { headers = {}, ...options } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    let response;
    try {
      response = await fetch(path.replace(/^\//, ""), {
        ...options,
        headers: key === null ? headers : { ...headers, "X-API-Key": key },
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      doubt();
      throw unreachable();
    }
    if (response.ok) return response;
    const isProblem = response.headers.get("content-type")?.includes("json");
    const said = isProblem ? await response.json().catch(() => ({})) : {};
    const problem = new Problem({ title: response.statusText, status: response.status, ...said });
    if (problem.passing && !path.endsWith("health/ready")) doubt();
    if (response.status !== 401 || !(await newKey(key, problem.message))) throw problem;
  }
}

/** The body of an answer: "json", "text" or "arrayBuffer". Where it breaks off, the service does not answer. */
export async function bodyOf(response, kind) {
  try {
    return await response[kind]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    doubt();
    throw unreachable();
  }
}

/** Whether there is a key to try now; all who wait for one share a question. */
async function newKey(refused, reason) {
  if (sessionStorage.getItem(KEY) !== refused) return true;
  keyQuestion ??= askForKey(reason).finally(() => {
    keyQuestion = null;
  });
  const key = await keyQuestion;
  if (key) sessionStorage.setItem(KEY, key);
  return Boolean(key);
}

/** A JSON document, fetched once: the catalogue does not change while the service runs. */
export function catalogue(path) {
  if (!documents.has(path)) {
    const document = request(path).then((response) => bodyOf(response, "json"));
    documents.set(path, document);
    document.catch(() => documents.delete(path));
  }
  return documents.get(path);
}
const documents = new Map();

export const losses = async () => (await catalogue("/v1/losses")).losses;
export const metrics = async () => (await catalogue("/v1/metrics")).metrics;
export const loss = async (name) => (await losses()).find((entry) => entry.name === name);

/** A JSON document, its numbers made numbers. */
export async function json(path, signal) {
  const response = await request(path, { signal });
  return JSON.parse(await bodyOf(response, "text"), revived);
}

/** POST /v1/evaluate in JSON: `{ loss, inputs, outputs, … }` to the answer, its numbers made numbers. */
export async function evaluate(body, signal) {
  const response = await request("/v1/evaluate", {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json" },
    signal,
  });
  return JSON.parse(await bodyOf(response, "text"), revived);
}

/**
 * The same in safetensors: `inputs` maps names to tensors of safetensors.js. The answer has `tensors` (gradient.<input>,
 * and loss where it is one), the rest of the JSON as `result`, and the request's own `timing`.
 */
export async function evaluateTensors({ inputs, ...rest }, signal) {
  const response = await request("/v1/evaluate", {
    method: "POST",
    body: encode(inputs, { request: JSON.stringify(rest) }),
    headers: { "Content-Type": MEDIA_TYPE },
    signal,
  });
  const { tensors, metadata } = decode(await bodyOf(response, "arrayBuffer"));
  return { tensors, result: JSON.parse(metadata.result, revived), timing: response.headers.get("server-timing") };
}

const NON_FINITE = { NaN, Infinity, "-Infinity": -Infinity };

/** JSON has no such numbers; they travel as strings. */
function revived(_, value) {
  return typeof value === "string" && Object.hasOwn(NON_FINITE, value) ? NON_FINITE[value] : value;
}
