/** What the view reads of /metrics and /health/ready. */

import { buckets, total } from "../../prometheus.js";

export const STAGES = {
  parse: "reading the request",
  queue: "waiting",
  copy: "to the device",
  compute: "computing",
  encode: "writing the answer",
};

/** The figures of one reading of /metrics. */
export function read(samples) {
  const stage = (name) => total(samples, "lossd_request_seconds_sum", { stage: name });
  return {
    at: performance.now(),
    requests: total(samples, "lossd_requests_total"),
    total: buckets(samples, "lossd_request_seconds", { stage: "total" }),
    sizes: buckets(samples, "lossd_batch_requests"),
    batched: total(samples, "lossd_batch_requests_sum"),
    queue: total(samples, "lossd_queue_requests"),
    held: total(samples, "lossd_queue_bytes"),
    cpu: total(samples, "process_cpu_seconds_total"),
    memory: total(samples, "process_resident_memory_bytes"),
    started: total(samples, "process_start_time_seconds"),
    answered: total(samples, "lossd_request_seconds_count", { stage: "total" }),
    stages: Object.fromEntries(Object.keys(STAGES).map((name) => [name, stage(name)])),
  };
}

/** The text of the state: ready, and the number of compiled passes while passes are compiled. */
export function readiness({ compiled: { ready, failed, total } }) {
  return ready + failed < total ? `Ready, compiling: ${ready} of ${total} passes done` : "Ready";
}
