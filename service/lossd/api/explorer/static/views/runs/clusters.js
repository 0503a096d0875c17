/** Which runs can be compared with each other, and which of them cannot be told from the best: the service says. */

import { baseOf, comparisonQuery } from "../../scores.js";

const AT_ONCE = 31; // a comparison takes 32 runs, of which the best is one
const MOST = 8;

/** The name of a run among those of all owners. */
export const keyOf = ({ owner, run }) => `${owner}/${run}`;

/**
 * Part runs into those that can be compared with each other. Each part is `{ runs, verdicts, reason }`: the verdict
 * about a run is against the first one, `reason` is why its first run is apart from the part before.
 *
 * @param runs Sorted, the best first. Runs that lack rows are not compared.
 */
export async function clusters(runs, metric, context) {
  const parts = [];
  let rest = runs.filter(isComplete);
  let reason = null;
  while (rest.length && parts.length < MOST) {
    const { alike, verdicts, refused } = await against(rest[0], rest.slice(1), metric, context);
    parts.push({ runs: [rest[0], ...alike], verdicts, reason });
    rest = rest.filter((run) => refused.has(run));
    reason = refused.get(rest[0]);
  }
  if (rest.length) parts.push({ runs: rest, verdicts: new Map(), reason });
  const incomplete = runs.filter((run) => !isComplete(run));
  if (incomplete.length) {
    const which = incomplete.length === 1 ? "This run is" : "These runs are";
    parts.push({ runs: incomplete, verdicts: new Map(), reason: `${which} open, so more rows may come.` });
  }
  return parts;
}

const isComplete = ({ status, dataset, counted }) =>
  status === "sealed" || (dataset?.rows !== undefined && counted.rows === dataset.rows);

/** Compare runs with the best: their verdicts, and why others cannot be compared. */
async function against(best, others, metric, { api, signal }) {
  const verdicts = new Map();
  const refused = new Map();
  for (let at = 0; at < others.length; at += AT_ONCE) {
    let compared = others.slice(at, at + AT_ONCE);
    while (compared.length) {
      const query = new URLSearchParams(
        comparisonQuery([best, ...compared], metric === "loss" ? {} : { metrics: baseOf(metric) }),
      );
      try {
        const { comparisons } = await api.json(`/v1/compare?${query}`, signal);
        for (const [i, { metrics }] of comparisons.entries())
          verdicts.set(keyOf(compared[i]), metrics[metric]?.verdict ?? null);
        break;
      } catch (error) {
        if (!(error instanceof api.Problem)) throw error;
        if (error.status !== 409) break; // such as too many requests now: these runs stay without a verdict
        const apart = error.further.runs ?? [];
        const why = (run) => apart.find((refusal) => refusal.run === run.run && refusal.owner === run.owner)?.detail;
        const known = compared.filter(why);
        for (const run of known.length ? known : compared) refused.set(run, why(run) ?? error.message);
        compared = known.length ? compared.filter((run) => !refused.has(run)) : [];
      }
    }
  }
  return { alike: others.filter((run) => !refused.has(run)), verdicts, refused };
}
