// What openapi-typescript generates from the schema types a program, which asks the service.

import type { components, paths } from "./schema.js";

type Request = components["schemas"]["EvaluateRequest"];
type Answer = paths["/v1/evaluate"]["post"]["responses"]["200"]["content"]["application/json"];
type Losses = paths["/v1/losses"]["get"]["responses"]["200"]["content"]["application/json"];

const url = process.argv[2];

function check(holds: boolean, what: string): void {
  if (!holds) throw new Error(what);
}

async function evaluate(request: Request): Promise<Answer> {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(`${url}/v1/evaluate`, { method: "POST", headers, body: JSON.stringify(request) });
  check(answer.ok, await answer.clone().text());
  return (await answer.json()) as Answer;
}

async function main(): Promise<void> {
  const loss: components["schemas"]["Focal"] = { name: "focal", gamma: 0 } as components["schemas"]["Focal"];
  const request: Request = {
    loss,
    inputs: { prediction: [[0, 0]], target: [1] },
    metrics: { names: ["accuracy"] } as components["schemas"]["MetricOptions"],
    gradient: null,
  };
  const answer = await evaluate(request);
  check(typeof answer.loss === "number" && Math.abs(answer.loss - Math.LN2) < 1e-6, `loss ${answer.loss}`);
  const missing = await evaluate({ ...request, inputs: { prediction: [["NaN", 0]], target: [1] } });
  const numerator: number | "NaN" | "Infinity" | "-Infinity" | undefined = missing.reduction?.numerator;
  check(numerator === "NaN", `numerator ${numerator}`);
  // A page has no decimal points: these are logits.
  const decided = await evaluate({ task: "binary", inputs: { prediction: [2, -1, 3], target: [1, 0, 1] } });
  check(decided.metrics?.accuracy === 1, "accuracy");

  const { losses } = (await (await fetch(`${url}/v1/losses`)).json()) as Losses;
  const names: string[] = losses.filter((entry) => entry.available).map((entry) => entry.name);
  check(names.includes("focal"), "focal");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
