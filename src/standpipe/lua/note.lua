-- Replaces a note if it is the one that was read.
--
-- KEYS[1]  the note (a string)
-- ARGV[1]  what stood there when it was read; '' for nothing
-- ARGV[2]  what is to stand there
-- ARGV[3]  for how long, in ms; '' for good
--
-- Returns  1 if it stands there now, 0 if another one does
-- Cost     O(1). GET, SET.
-- Again    Called again after a cut it finds its own note, and says 1.

local now = redis.call('GET', KEYS[1]) or ''
if now == ARGV[2] then return 1 end
if now ~= ARGV[1] then return 0 end
if ARGV[3] == '' then
  redis.call('SET', KEYS[1], ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
