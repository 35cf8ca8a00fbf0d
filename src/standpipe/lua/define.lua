-- Changes the definition of a stream, if it is still the one that was read.
--
-- KEYS[1]  the definition (a string)
-- ARGV[1]  as it was read; '' if there was none
-- ARGV[2]  what it is to be
--
-- Returns  1 if it is that now, 0 if somebody has changed it meanwhile
-- Cost     O(1). GET, SET.

if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
