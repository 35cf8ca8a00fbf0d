-- Deletes a group that has nothing pending and has been given nothing since it was looked at.
--
-- Between looking and XGROUP DESTROY a worker may read: what it was given would be off every list,
-- and never be delivered again if the worker dies.
--
-- KEYS[1]  the shard
-- ARGV[1]  group
-- ARGV[2]  the last-delivered ID that was seen
--
-- Returns  1 if it is deleted, 0 if it is not as it was seen, or not there
-- Cost     O(groups of the shard). XINFO GROUPS, XGROUP DESTROY.

for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
  local group = {}
  for i = 1, #row, 2 do group[row[i]] = row[i + 1] end
  if group.name == ARGV[1] and group.pending == 0 and group['last-delivered-id'] == ARGV[2] then
    return redis.call('XGROUP', 'DESTROY', KEYS[1], ARGV[1])
  end
end
return 0
