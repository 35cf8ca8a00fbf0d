-- Says that a consumer is there, or that it goes, and who else shares the shards of its group.
--
-- KEYS[1]  the members of the group (a sorted set: name, until when it counts as there in ms)
-- ARGV[1]  consumer
-- ARGV[2]  for how long it counts as there, ms; 0: it goes
--
-- Returns  the names of all that are there
-- Cost     O(members). TIME, ZADD or ZREM, ZREMRANGEBYSCORE, ZRANGE.

local consumer, ms = ARGV[1], tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ms > 0 then
  redis.call('ZADD', KEYS[1], string.format('%d', now + ms), consumer)
else
  redis.call('ZREM', KEYS[1], consumer)
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%d', now))
return redis.call('ZRANGE', KEYS[1], 0, -1)
