/** Requests to the service. */

import { decode, encode, MEDIA_TYPE } from "./safetensors.js";
import { doubt } from "./status.js";

const KEY = "lossd-api-key";
const PASSING = new Set([0, 429, 502, 503, 504]);
let keyQuestion = null;
let showKeyDialog = () => Promise.resolve(null);

/** An error document of the service (RFC 9457), or `unreachable` if there is no answer. */
export class Problem extends Error {
  constructor({ title, detail, type, status, errors = [], ...further }) {
    super(detail || title || `The service answers with status ${status}.`);
    Object.assign(this, { title: title || `Status ${status}`, type, status, errors, further });
  }

  /** Whether the same request may succeed later. */
  get passing() {
    return PASSING.has(this.status);
  }

  /** The page of its type, relative to this page: a proxy may serve both below a path. */
  get page() {
    const slug = /\/problems\/([\w-]+)$/.exec(this.type ?? "")?.[1];
    return slug && `problems/${slug}`;
  }
}

const unreachable = () => new Problem({ title: "Unreachable", detail: "The service does not answer.", status: 0 });

/** Set the function that asks the reader for a key; it resolves to the key, or to null. */
export function onKeyNeeded(ask) {
  showKeyDialog = ask;
}

export const keyIsSet = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

/** The response at a path relative to the page, for proxies with a path. Throws a Problem for an error. */
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
    if (response.ok || response.status === 304) return response;
    const isProblem = response.headers.get("content-type")?.includes("json");
    const document = isProblem ? await response.json().catch(() => ({})) : {};
    const problem = new Problem({ title: response.statusText, status: response.status, ...document });
    if (problem.passing && !path.endsWith("health/ready")) doubt();
    if (response.status !== 401 || !(await newKey(key, problem.message))) throw problem;
  }
}

/** The body of a response: "json", "text" or "arrayBuffer". Throws a Problem if the connection breaks. */
export async function bodyOf(response, kind) {
  try {
    return await response[kind]();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    doubt();
    throw unreachable();
  }
}

/** Whether there is a new key to try; concurrent requests share one dialog. */
async function newKey(refused, reason) {
  if (sessionStorage.getItem(KEY) !== refused) return true;
  keyQuestion ??= showKeyDialog(reason).finally(() => {
    keyQuestion = null;
  });
  const key = await keyQuestion;
  if (key) sessionStorage.setItem(KEY, key);
  return Boolean(key);
}

/** A JSON document, fetched once: it does not change while the service runs. */
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
export const tasks = async () => (await catalogue("/v1/metrics")).tasks;
export const loss = async (name) => (await losses()).find((entry) => entry.name === name);

/** A JSON document, with NaN and infinities as numbers. */
export async function json(path, signal) {
  const response = await request(path, { signal });
  return JSON.parse(await bodyOf(response, "text"), revived);
}

/** The JSON document `{ document, tag }` at a path; null if it still has the entity tag. */
export async function changed(path, tag, signal) {
  const response = await request(path, { signal, cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
  if (response.status === 304) return null;
  const document = JSON.parse(await bodyOf(response, "text"), revived);
  return { document, tag: response.headers.get("etag") };
}

/** POST /v1/evaluate in JSON: the answer to `{ loss, inputs, outputs, … }`, with NaN and infinities as numbers. */
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
 * POST /v1/evaluate in safetensors. `inputs` maps names to tensors of safetensors.js. The answer has `tensors`
 * (gradient.<input>, and an unreduced loss), the JSON as `result`, and the Server-Timing as `timing`.
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

/** JSON has no NaN and no infinities; the service sends them as strings. */
function revived(_, value) {
  return typeof value === "string" && Object.hasOwn(NON_FINITE, value) ? NON_FINITE[value] : value;
}
