-- Posts the bodies listed in BODIES (paths, one a line) in turn, and prints what was measured as one line of JSON.
local requests, turn = {}, 0

function init(_)
  wrk.method = "POST"
  for name, value in string.gmatch(os.getenv("HEADERS"), "([^:\n]+): ([^\n]+)") do wrk.headers[name] = value end
  for path in string.gmatch(os.getenv("BODIES"), "[^\n]+") do
    local file = assert(io.open(path, "rb"))
    requests[#requests + 1] = wrk.format(nil, nil, nil, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\nJSON {"requests": %d, "seconds": %.6f, "p50_ms": %.4f, "p99_ms": %.4f, "failures": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout + errors.status))
end
