-- One distinct body per request: the file BODY with its number in place of every @ID@.
local parts, threads = {}, 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  local text = io.open(os.getenv("BENCH_BODY"), "rb"):read("*a")
  base, step = tonumber(os.getenv("BENCH_FIRST_ID")) + number, tonumber(os.getenv("BENCH_THREADS"))
  local at = 1
  while true do
    local from, to = text:find("@ID@", at, true)
    parts[#parts + 1] = text:sub(at, (from or #text + 1) - 1)
    if not from then break end
    at = to + 1
  end
  headers = { ["Content-Type"] = os.getenv("BENCH_CONTENT_TYPE") }
end

function request()
  base = base + step
  return wrk.format("POST", nil, headers, table.concat(parts, tostring(base)))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('RESULT {"requests":%d,"micros":%d,"bad":%d,"broken":%d,"p50":%d,"p99":%d,"max":%d}\n', summary.requests,
    summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
