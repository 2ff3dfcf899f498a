-- One distinct body per request: BENCH_BODY with the request's number in place of every @ID@, and one of BENCH_LEADS leads for @LEAD@.
local parts, places = {}, {}
local number, leads, headers

function init(args)
  number, leads = tonumber(os.getenv("BENCH_FIRST")), tonumber(os.getenv("BENCH_LEADS"))
  headers = { ["Content-Type"] = os.getenv("BENCH_CONTENT_TYPE") }
  for text, place in (os.getenv("BENCH_BODY") .. "@END@"):gmatch("(.-)@(%u+)@") do
    parts[#parts + 1] = text
    parts[#parts + 1] = ""
    places[#parts] = place
  end
end

-- wrk calls this once before the first request, to look at what comes.
function request()
  local lead = tostring(number * 7919 % leads + 1)
  local id = tostring(number)
  for at, place in pairs(places) do
    parts[at] = place == "ID" and id or place == "LEAD" and lead or ""
  end
  number = number + 1
  return wrk.format("POST", nil, headers, table.concat(parts))
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('RESULT {"requests":%d,"micros":%d,"bad":%d,"broken":%d,"p50":%d,"p99":%d}\n', summary.requests,
    summary.duration, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
