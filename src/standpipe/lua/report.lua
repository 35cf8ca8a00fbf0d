-- Says what a worker does, for as long as it counts as there, or that it goes.
--
-- KEYS[1]  what the workers of the group do (a hash: consumer, report)
-- KEYS[2]  until when each of them counts as there (a sorted set: consumer, ms)
-- ARGV[1]  consumer
-- ARGV[2]  for how long it counts as there, ms
-- ARGV[3]  its report; empty: it goes
--
-- Returns  1
-- Cost     O(log workers + those that are gone). TIME, HSET and ZADD, or HDEL and ZREM; ZRANGEBYSCORE,
--          PEXPIRE of both. By the server's clock, so that those of the workers need not agree.

local consumer, ms, report = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if report == '' then
  redis.call('HDEL', KEYS[1], consumer)
  redis.call('ZREM', KEYS[2], consumer)
else
  redis.call('HSET', KEYS[1], consumer, report)
  redis.call('ZADD', KEYS[2], string.format('%d', now + ms), consumer)
  redis.call('PEXPIRE', KEYS[1], ms)
  redis.call('PEXPIRE', KEYS[2], ms)
end
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%d', now))) do
  redis.call('HDEL', KEYS[1], gone)
  redis.call('ZREM', KEYS[2], gone)
end
return 1
