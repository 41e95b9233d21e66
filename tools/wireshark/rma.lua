-- Wireshark dissector for the frames of `rma`: both EtherTypes, every kind, every field.
--
-- docs/protocol.md says what the bytes mean. Numbers and names of kinds, statuses, roles … come
-- from rma_tables.lua beside this file, which is generated from the Rust tables.
--
--   tshark -X lua_script:tools/wireshark/rma.lua -2 -r capture.pcap
--
-- Filters that help: rma.malformed, rma.unmatched, rma.unanswered, rma.guid == <any GUID in a
-- frame>, rma.response_to, rma.time > 0.01, rma.retransmission_of.

local here = __DIR__ or debug.getinfo(1, "S").source:match("^@(.*)[/\\]") or "."
local T = dofile(here .. "/rma_tables.lua")

local rma = Proto("rma", "Resource Management Agent")

rma.prefs.verify = Pref.bool("Verify checksums", true, "Compute the CRC-32 of every frame")
rma.prefs.management = Pref.uint("Management EtherType", T.ethertype_management,
    "Fabric services, RMA to RMA, unit management (decimal)")
rma.prefs.service = Pref.uint("Service EtherType", T.ethertype_service,
    "I/O controllers (decimal)")

-- Code -> name tables of the generated file, inverted where the code itself is needed.
local function code_of(names, wanted)
    for code, name in pairs(names) do
        if name == wanted then return code end
    end
    error("rma_tables.lua has no '" .. wanted .. "'")
end
local K = {}
for code, name in pairs(T.kind) do K[name] = code end
local STATUS_OK = code_of(T.status, "ok")

------------------------------------------------------------------------------------------------
-- Fields

local F = {}
local function add_field(abbr, ctor, label, ...)
    assert(not F[abbr], abbr)
    F[abbr] = ctor("rma." .. abbr, label, ...)
end
local function names(ctor, base, list, table_of_names)
    for abbr, label in pairs(list) do add_field(abbr, ctor, label, base, table_of_names) end
end

names(ProtoField.uint8, base.DEC, {
    version = "Version", ["owners.count"] = "Owners", ["row.mode"] = "Mode",
    ["parts.level"] = "Level", ["digests.depth"] = "Levels deeper", ["extent.count"] = "Extents",
})
add_field("kind", ProtoField.uint8, "Kind", base.HEX, T.kind)
add_field("flags", ProtoField.uint16, "Flags", base.HEX)
names(ProtoField.uint16, base.HEX, { part = "Part" })
names(ProtoField.uint16, base.DEC, {
    payload_length = "Payload length", ioc = "Controller number (IOC)", iod = "Device number (IOD)",
    outstanding = "Outstanding commands", credits = "Credits",
    ["connect.mtu"] = "MTU", ["path.mtu"] = "MTU", ["connect.credits"] = "Credits", ["notify.ioc"] = "Controller number",
    ["row.ioc"] = "Controller number (IOC)", ["row.iod"] = "Device number (IOD)",
    ["controller.ioc"] = "Controller number (IOC)", ["device.iod"] = "Device number (IOD)",
})
add_field("status", ProtoField.uint16, "Status", base.DEC, T.status)
names(ProtoField.uint32, base.HEX, { checksum = "Checksum", reserved = "Reserved" })
names(ProtoField.uint32, base.DEC, {
    ["deposit.piece"] = "Piece", ["path.number"] = "Path probe",
    ["segment.offset"] = "Segment offset", message_length = "Message length",
    ["connect.attempt"] = "Attempt", ["ranges.count"] = "Missing ranges",
    ["range.offset"] = "Offset", ["range.length"] = "Length", ["macs.count"] = "NICs",
    ["members.count"] = "Members", ["rows.count"] = "Rows", ["table.rows"] = "Rows in the table",
    ["guests.count"] = "Guest clusters",
    ["controllers.count"] = "Controllers", ["devices.count"] = "Devices",
    ["registers.count"] = "Registers", ["changes.count"] = "Changes",
    ["holders.count"] = "Holders", ["holder.process"] = "Process",
    ["parts.count"] = "Parts", ["digests.count"] = "Digests",
    ["row.block_size"] = "Block size", ["device.block_size"] = "Block size",
})
names(ProtoField.uint64, base.HEX, {
    digest = "Digest of a part", connection = "Connection", ["connect.features"] = "Feature bits", features = "Features",
})
names(ProtoField.uint64, base.DEC, {
    command = "Command", epoch = "Epoch",
    ["connect.incarnation"] = "Incarnation", ["connect.session"] = "Session",
    ["notify.number"] = "Notification number", ["here.incarnation"] = "Incarnation",
    ["observed.incarnation"] = "Observed in incarnation", ["observed.change"] = "Observed at change",
    ["listed.incarnation"] = "Listed in incarnation", ["listed.change"] = "Listed at change",
    ["member.epoch"] = "Ownership epoch", ["member.version"] = "Catalog version",
    ["register.assignment"] = "Assignment", ["placement.assignment"] = "Assignment",
    ["move.term"] = "Term", ["move.expected"] = "Expected epoch",
    ["register.version"] = "Catalog version", ["membership.known_version"] = "Known version",
    ["membership.version"] = "List version", ["unit_ownership.epoch"] = "Ownership epoch",
    ["table.term"] = "Table term", ["table.counter"] = "Table counter",
    ["table.floor.term"] = "Floor term", ["table.floor.counter"] = "Floor counter",
    ["settings.term"] = "Settings term", ["settings.counter"] = "Settings counter",
    ["row.extent.offset"] = "Extent offset", ["row.extent.length"] = "Extent length",
    ["extent.offset"] = "Offset on the device", ["extent.length"] = "Length",
    ["row.size"] = "Size", ["device.size"] = "Size",
    ["owned.epoch"] = "Ownership epoch", ["owned.term"] = "Ownership term",
    ["restore.term"] = "Term", ["change.term"] = "Term", ["change.expected"] = "Expected epoch",
    ["io.offset"] = "Offset on the device", ["io.length"] = "Length",
    ["holder.term"] = "Term", ["lease.promised"] = "Promised term",
    ["lease.held"] = "Held, ms", ["lease.left"] = "Left, ms",
})
names(ProtoField.guid, nil, {
    guid = "Any GUID", ["connect.initiator"] = "Initiator", ["connect.responder"] = "Responder",
    ["discover.asker"] = "Asker", ["here.fabric"] = "Fabric services",
    ["member.guid"] = "GUID", ["after"] = "After", ["unit_ownership.unit"] = "Unit",
    ["table.writer"] = "Table writer", ["table.floor.writer"] = "Floor writer", ["settings.writer"] = "Settings writer",
    ["row.guid"] = "GUID", ["row.parent"] = "Parent", owner = "Owner",
    ["owned.writer"] = "Ownership writer", ["unit.guid"] = "Unit", ["controller.guid"] = "Controller",
    ["devices.controller"] = "Controller", ["device.guid"] = "Device",
    ["extent.device"] = "Device", ["io.extent"] = "Extent",
    ["register.row"] = "Row", ["change.row"] = "Row", ["use.row"] = "Row", ["change.writer"] = "Writer",
    ["holder.host"] = "Host", ["found.host"] = "Host", ["move.writer"] = "Writer",
    ["move.row"] = "Row", ["move.owner"] = "Owner",
})
names(ProtoField.string, nil, {
    cluster = "Cluster", ["register.cluster"] = "Cluster", ["placement.home"] = "Home cluster",
    guest = "Guest of", ["find.cluster"] = "Cluster", ["find.host"] = "Host", ["move.to"] = "To cluster",
    ["member.name"] = "Name",
    ["row.name"] = "Name", ["row.vendor"] = "Vendor", ["row.model"] = "Model",
    ["row.serial"] = "Serial", ["unit.name"] = "Name", ["unit.vendor"] = "Vendor",
    ["unit.model"] = "Model", ["unit.serial"] = "Serial", ["controller.name"] = "Name",
    ["controller.model"] = "Model", ["device.name"] = "Name", ["device.vendor"] = "Vendor",
    ["device.model"] = "Model", ["device.serial"] = "Serial", ["extent.name"] = "Name", malformed = "Malformed",
    ["holder.name"] = "Name", ["holder.user"] = "User", ["use.users"] = "Users",
})
names(ProtoField.bytes, base.COLON, {
    tag = "Authentication tag", ["table.digest"] = "Table digest", ["deposit.base"] = "Receiver's digest", data = "Data",
    padding = "Padding", ["path.padding"] = "Padding", ["segment.data"] = "Segment",
})
names(ProtoField.bool, nil, {
    ["connect.resumed"] = "Resumed", ["extent.present"] = "Present", more = "More follow", ["membership.unchanged"] = "Unchanged",
    ["member.guest"] = "Guest", ["move.recursive"] = "Also what is below",
    ["lease.force"] = "By force", ["lease.granted"] = "Granted",
    unmatched = "Reply without a request", unanswered = "Request without a reply",
})
add_field("mac", ProtoField.ether, "NIC")
add_field("connect.role", ProtoField.uint8, "Role", base.DEC, T.role)
add_field("discover.role", ProtoField.uint8, "Role", base.DEC, T.role)
add_field("progress", ProtoField.uint8, "Progress", base.DEC, T.progress)
add_field("notify.event", ProtoField.uint8, "Event", base.DEC, T.event)
add_field("lease.verb", ProtoField.uint8, "Verb", base.DEC, T.lease_verb)
add_field("holder.purpose", ProtoField.uint8, "Purpose", base.DEC, T.purpose)
add_field("member.entity", ProtoField.uint8, "Type", base.DEC, T.entity)
add_field("row.entity", ProtoField.uint8, "Type", base.DEC, T.entity)
add_field("row.state", ProtoField.uint8, "State", base.DEC, T.row_state)
add_field("ownership", ProtoField.uint8, "Ownership", base.DEC, T.ownership)
add_field("settings.granularity", ProtoField.uint8, "Granularity", base.DEC, T.granularity)

-- Entries of lists, and what is found out rather than read.
for abbr, label in pairs({
    header = "Header", member = "Member", row = "Row", controller_record = "Controller",
    device_record = "Device", guest_record = "Guest", register_record = "Register", change = "Change", use_record = "Row", range = "Range",
}) do
    F[abbr] = ProtoField.none("rma." .. abbr, label)
end
F["response_in"] = ProtoField.framenum("rma.response_in", "Response in", base.NONE,
    frametype.RESPONSE)
F["response_to"] = ProtoField.framenum("rma.response_to", "Response to", base.NONE,
    frametype.REQUEST)
F["retransmission_of"] = ProtoField.framenum("rma.retransmission_of", "Retransmission of",
    base.NONE, frametype.RETRANS_PREV)
F["reassembled_in"] = ProtoField.framenum("rma.reassembled_in", "Reassembled in", base.NONE)
F["reassembled.length"] = ProtoField.uint32("rma.reassembled.length", "Reassembled length")
F["time"] = ProtoField.new("Time from request", "rma.time", ftypes.RELATIVE_TIME)

local flag_fields, feature_fields = {}, {}
for i, flag in ipairs(T.flags) do
    flag_fields[i] = ProtoField.bool("rma.flags." .. flag[2], flag[2], 16, nil, flag[1])
    F["flags." .. flag[2]] = flag_fields[i]
end
for i, feature in ipairs(T.features) do
    local abbr = "features." .. feature[2]:gsub("-", "_")
    feature_fields[i] = ProtoField.bool("rma." .. abbr, feature[2], 64, nil, feature[1])
    F[abbr] = feature_fields[i]
end

local all_fields = {}
for _, field in pairs(F) do all_fields[#all_fields + 1] = field end
rma.fields = all_fields

local X = {
    malformed = ProtoExpert.new("rma.expert.malformed", "Malformed frame",
        expert.group.MALFORMED, expert.severity.ERROR),
    checksum = ProtoExpert.new("rma.expert.checksum", "Bad checksum",
        expert.group.CHECKSUM, expert.severity.ERROR),
    status = ProtoExpert.new("rma.expert.status", "Not ok",
        expert.group.RESPONSE_CODE, expert.severity.NOTE),
    unmatched = ProtoExpert.new("rma.expert.unmatched", "Reply without a request",
        expert.group.SEQUENCE, expert.severity.WARN),
    unanswered = ProtoExpert.new("rma.expert.unanswered", "Request without a reply",
        expert.group.SEQUENCE, expert.severity.NOTE),
    retransmission = ProtoExpert.new("rma.expert.retransmission", "Sent again",
        expert.group.SEQUENCE, expert.severity.NOTE),
    cut = ProtoExpert.new("rma.expert.cut", "The capture has not all of this frame",
        expert.group.UNDECODED, expert.severity.NOTE),
}
local experts = {}
for _, x in pairs(X) do experts[#experts + 1] = x end
rma.experts = experts

------------------------------------------------------------------------------------------------
-- CRC-32 (IEEE 802.3), eight bytes at a time

local bxor, band, rshift, bnot = bit.bxor, bit.band, bit.rshift, bit.bnot
local crc = {}
for k = 0, 7 do crc[k] = {} end
for i = 0, 255 do
    local c = i
    for _ = 1, 8 do
        c = bxor(rshift(c, 1), band(c, 1) == 1 and 0xedb88320 or 0)
    end
    crc[0][i] = c
end
for k = 1, 7 do
    for i = 0, 255 do
        local c = crc[k - 1][i]
        crc[k][i] = bxor(rshift(c, 8), crc[0][band(c, 255)])
    end
end
local c0, c1, c2, c3, c4, c5, c6, c7 =
    crc[0], crc[1], crc[2], crc[3], crc[4], crc[5], crc[6], crc[7]

local function crc32(text)
    local sum, byte, n = -1, string.byte, #text
    local i = 1
    while i + 7 <= n do
        local a, b, c, d, e, f, g, h = byte(text, i, i + 7)
        sum = bxor(
            c7[bxor(a, band(sum, 255))], c6[bxor(b, band(rshift(sum, 8), 255))],
            c5[bxor(c, band(rshift(sum, 16), 255))], c4[bxor(d, rshift(sum, 24))],
            c3[e], c2[f], c1[g], c0[h])
        i = i + 8
    end
    while i <= n do
        sum = bxor(rshift(sum, 8), c0[bxor(band(sum, 255), byte(text, i))])
        i = i + 1
    end
    return bnot(sum) % 0x100000000
end

------------------------------------------------------------------------------------------------
-- Reading bodies. Whatever does not fit ends the reading with an error of ours.

local Bad = {}
local function bad(what) error(setmetatable({ what = what }, Bad), 0) end

local function is_text(text)
    if not text:find("[\128-\255]") then return true end
    local i, n = 1, #text
    while i <= n do
        local a, b = text:byte(i, i + 1)
        local more, low, high = 0, 0x80, 0xbf
        if a >= 0xf5 then return false
        elseif a >= 0xf0 then
            more = 3
            if a == 0xf0 then low = 0x90 elseif a == 0xf4 then high = 0x8f end
        elseif a >= 0xe0 then
            more = 2
            if a == 0xe0 then low = 0xa0 elseif a == 0xed then high = 0x9f end
        elseif a >= 0xc2 then more = 1
        elseif a >= 0x80 then return false end
        if more > 0 and (b == nil or b < low or b > high) then return false end
        for k = 2, more do
            local c = text:byte(i + k)
            if c == nil or c < 0x80 or c > 0xbf then return false end
        end
        i = i + 1 + more
    end
    return true
end

local NIL, ZERO_MAC = ("\0"):rep(16), ("\0"):rep(6)

local Reader = {}
Reader.__index = Reader

local function new_reader(range, tree)
    return setmetatable({ range = range, tree = tree, pos = 0, len = range and range:len() or 0 },
        Reader)
end

function Reader:left() return self.len - self.pos end

function Reader:take(n)
    if n > self:left() then bad("truncated") end
    local range = self.range:range(self.pos, n)
    self.pos = self.pos + n
    return range
end

function Reader:finish()
    if self:left() > 0 then bad("trailing bytes") end
end

-- Integers up to 32 bits are given back as numbers, 64 bits as their eight bytes.
function Reader:uint(abbr, size)
    local range = self:take(size)
    local item = self.tree:add(F[abbr], range)
    if size <= 4 then return range:uint(), item end
    return range:raw(), item
end

function Reader:code(abbr, table_of_names, what)
    local range = self:take(1)
    self.tree:add(F[abbr], range)
    local code = range:uint()
    if not table_of_names[code] then bad("bad value in " .. what) end
    return code
end

function Reader:bool(abbr)
    local range = self:take(1)
    self.tree:add(F[abbr], range)
    if range:uint() > 1 then bad("bad value in boolean") end
    return range:uint() == 1
end

-- A GUID; `entity` where NIL is no value. Every GUID is also an `rma.guid`, for filters.
function Reader:guid(abbr, entity)
    local range = self:take(16)
    self.tree:add(F[abbr], range)
    self.tree:add(F.guid, range):set_hidden()
    local raw = range:raw()
    if entity and raw == NIL then bad("bad value in GUID") end
    -- As digits: they compare the same in every locale.
    return tostring(range:bytes()), raw
end

function Reader:text(abbr, max)
    local start = self.pos
    local len = self:take(1):uint()
    if len > max then bad("text over its limit") end
    local text = len > 0 and self:take(len):raw() or ""
    if not is_text(text) then bad("text is not UTF-8") end
    -- Not the tree's own decoding: it would stop at a NUL.
    self.tree:add(F[abbr], self.range:range(start, len + 1), (text:gsub("%z", "\\0")))
    return text
end

local function cluster_text(raw)
    local name, pad = raw:match("^([%w._-]*)(%z*)$")
    return name and #name + #pad == 16 and name or nil
end

function Reader:cluster(abbr)
    local range = self:take(16)
    local name = cluster_text(range:raw())
    self.tree:add(F[abbr], range, name or "?")
    if not name then bad("bad value in cluster name") end
    return name
end

function Reader:macs(count_size, least)
    local count = self:uint("macs.count", count_size)
    if count > T.max_macs then bad("MAC addresses over its limit") end
    if count < least then bad("bad value in MAC addresses") end
    local seen = {}
    for _ = 1, count do
        local range = self:take(6)
        self.tree:add(F.mac, range)
        local raw = range:raw()
        if raw == ZERO_MAC or raw:byte(1) % 2 == 1 then bad("bad value in MAC address") end
        if seen[raw] then bad("bad value in MAC addresses") end
        seen[raw] = true
    end
end

-- A list with its count in front; each entry in a subtree of its own. `keys(entry)` gives what must
-- ascend (first) and what must be distinct (second), where it gives something.
function Reader:list(count_abbr, entry_abbr, max, what, read)
    local count = self:uint(count_abbr, 4)
    if count > max then bad(what .. " over its limit") end
    local outer, before, seen = self.tree, nil, {}
    for _ = 1, count do
        if self:left() == 0 then bad("truncated") end
        local item = outer:add(F[entry_abbr], self.range:range(self.pos, self:left()))
        self.tree = item
        local start = self.pos
        local ascending, distinct, label = read(self)
        item:set_len(self.pos - start)
        if label then item:append_text(": " .. label) end
        if ascending then
            if before and not (before < ascending) then bad("bad value in " .. what) end
            before = ascending
        end
        if distinct then
            if seen[distinct] then bad("bad value in " .. what) end
            seen[distinct] = true
        end
        self.tree = outer
    end
    return count
end

function Reader:observed()
    self:uint("observed.incarnation", 8)
    self:uint("observed.change", 8)
end

function Reader:listed()
    self:uint("listed.incarnation", 8)
    self:uint("listed.change", 8)
end

function Reader:ownership()
    local word = self:code("ownership", T.ownership, "ownership")
    local count = self:uint("owners.count", 1)
    if count > T.max_owners then bad("owners over its limit") end
    local before
    for _ = 1, count do
        local owner = self:guid("owner", true)
        if before and not (before < owner) then bad("bad value in ownership") end
        before = owner
    end
    if (word == 0 and count ~= 0) or (word == 1 and count ~= 1) or (word == 2 and count == 0) then
        bad("bad value in ownership")
    end
    return T.ownership[word]
end

function Reader:owned()
    self:uint("owned.epoch", 8)
    self:uint("owned.term", 8)
    self:guid("owned.writer")
end

function Reader:register()
    local row = self:guid("register.row", true)
    local word = self:ownership()
    self:owned()
    self:extent_facts(row, word)
    return row, word
end

-- What an extent's register or change says of it.
function Reader:extent_facts(row, word)
    local count = self:uint("extent.count", 1)
    if count > 1 then bad("extents over its limit") end
    if count == 0 then return end
    if self:guid("extent.device", true) == row then bad("bad value in extent") end
    if not self:extent("extent") then bad("bad value in extent") end
    local present = self:bool("extent.present")
    if not present and word ~= T.ownership[0] then bad("bad value in extent") end
    self:text("extent.name", T.max_name_bytes)
end

function Reader:features()
    local _, item = self:uint("features", 8)
    local range = self.range:range(self.pos - 8, 8)
    for _, field in ipairs(feature_fields) do item:add(field, range) end
end

local function is_block_size(n)
    return n >= T.min_block_size and n <= T.max_block_size and band(n, n - 1) == 0
end

function Reader:block_size(abbr)
    local n = self:uint(abbr, 4)
    if n ~= 0 and not is_block_size(n) then bad("bad value in block size") end
end

function Reader:summary()
    local start = self.range:range(self.pos)
    self:uint("table.term", 8)
    self:uint("table.counter", 8)
    self:guid("table.writer")
    self.tree:add(F["table.digest"], self:take(16))
    local rows = self:uint("table.rows", 4)
    self:uint("table.floor.term", 8)
    self:uint("table.floor.counter", 8)
    self:guid("table.floor.writer")
    return ("stamp %s.%s, %d rows"):format(tostring(start(0, 8):uint64()),
        tostring(start(8, 8):uint64()), rows)
end

function Reader:parts()
    local level = self:uint("parts.level", 1)
    local count = self:uint("parts.count", 4)
    if count > T.max_parts then bad("parts over its limit") end
    local before
    for _ = 1, count do
        local number = self:uint("part", 2)
        if before and number <= before then bad("bad value in parts") end
        before = number
    end
    if level > T.max_part_level then bad("bad value in level") end
    if not before or before >= 2 ^ (4 * level) then bad("bad value in parts") end
    return level, count
end

function Reader:settings()
    local granularity = self:code("settings.granularity", T.granularity, "granularity")
    self:uint("settings.term", 8)
    self:uint("settings.counter", 8)
    self:guid("settings.writer")
    return "granularity " .. T.granularity[granularity]
end

-- Bytes as digits, which compare the same in every locale.
local function digits(raw)
    return (raw:gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

local ZERO64 = ("\0"):rep(8)

-- A session; gives its term as eight bytes, and a label.
function Reader:holder()
    local start = self.range:range(self.pos)
    local term = self:uint("holder.term", 8)
    self:guid("holder.host", true)
    local purpose = self:code("holder.purpose", T.purpose, "purpose")
    local process = self:uint("holder.process", 4)
    local name = self:text("holder.name", T.max_name_bytes)
    local user = self:text("holder.user", T.max_name_bytes)
    return term, ("term %s of %s process %d user %s for %s"):format(
        tostring(start(0, 8):uint64()), name, process, user, T.purpose[purpose])
end

function Reader:extent(prefix)
    local zero, offset = ("\0"):rep(8), nil
    offset = self:uint(prefix .. ".offset", 8)
    local len = self:uint(prefix .. ".length", 8)
    if len == zero then
        if offset ~= zero then bad("bad value in extent") end
        return false
    end
    -- The sum's carry out of 64 bits, byte by byte.
    local carry = 0
    for i = 8, 1, -1 do
        carry = offset:byte(i) + len:byte(i) + carry >= 256 and 1 or 0
    end
    if carry == 1 then bad("bad value in extent") end
    return true
end

function Reader:row()
    local guid = self:guid("row.guid", true)
    local entity = self:code("row.entity", T.entity, "entity type")
    self:code("row.state", T.row_state, "row state")
    self:uint("row.mode", 1)
    self:macs(1, 0)
    self:uint("row.ioc", 2)
    self:uint("row.iod", 2)
    self:extent("row.extent")
    self:guid("row.parent")
    local name = self:text("row.name", T.max_name_bytes)
    self:text("row.vendor", T.max_label_bytes)
    self:text("row.model", T.max_label_bytes)
    self:text("row.serial", T.max_label_bytes)
    self:uint("row.size", 8)
    self:block_size("row.block_size")
    self:features()
    self:observed()
    local word = self:ownership()
    self:owned()
    return guid, ("%s %s, %s"):format(T.entity[entity], name, word)
end

function Reader:rows(must_ascend)
    return self:list("rows.count", "row", T.max_page_rows, "rows", function(r)
        local guid, label = r:row()
        return must_ascend and guid or nil, guid, label
    end)
end

function Reader:device()
    local guid = self:guid("device.guid", true)
    local iod = self:uint("device.iod", 2)
    if iod == 0 then bad("bad value in device number") end
    local name = self:text("device.name", T.max_name_bytes)
    self:text("device.vendor", T.max_label_bytes)
    self:text("device.model", T.max_label_bytes)
    self:text("device.serial", T.max_label_bytes)
    self:uint("device.size", 8)
    -- Any is read: one that no disk has does not cost the others of the list.
    self:uint("device.block_size", 4)
    self:features()
    self:observed()
    return iod, guid, ("%d %s"):format(iod, name)
end

function Reader:ranges()
    local before = 0
    return self:list("ranges.count", "range", T.max_ranges, "ranges", function(r)
        local offset = r:uint("range.offset", 4)
        local len = r:uint("range.length", 4)
        if len == 0 or offset + len > T.max_message_bytes then bad("bad value in range") end
        if offset < before then bad("bad value in ranges") end
        before = offset + len
        return nil, nil, offset .. "+" .. len
    end)
end

local function page_advances(more, count)
    if more and count == 0 then bad("bad value in empty page") end
end

function Reader:registers()
    local more = self:bool("more")
    local count = self:list("registers.count", "register_record", T.max_registers, "registers",
        function(r)
            local row, word = r:register()
            return more and row or nil, row, word
        end)
    page_advances(more, count)
    return count .. " registers" .. (more and ", more follow" or "")
end

function Reader:station()
    local entity = self:code("member.entity", T.entity, "entity type")
    if entity > 2 then bad("bad value in entity type") end
    self:macs(4, 1)
    return self:text("member.name", T.max_name_bytes), T.entity[entity]
end

function Reader:link()
    if self:uint("connect.mtu", 2) < T.min_mtu then bad("bad value in MTU") end
    if self:uint("connect.credits", 2) == 0 then bad("bad value in credits") end
end

------------------------------------------------------------------------------------------------
-- Bodies by kind: functions of a reader that give back a text for the Info column

local request, reply = {}, {}

request[K["connect"]] = function(r)
    r:guid("connect.initiator", true)
    r:uint("connect.incarnation", 8)
    r:uint("connect.session", 8)
    local attempt = r:uint("connect.attempt", 4)
    local role = r:code("connect.role", T.role, "role")
    r:guid("connect.responder")
    r:uint("connect.features", 8)
    r:link()
    return T.role[role] .. ", attempt " .. attempt
end
reply[K["connect"]] = function(r)
    r:guid("connect.responder", true)
    r:uint("connect.incarnation", 8)
    r:uint("connect.features", 8)
    r:link()
    return r:bool("connect.resumed") and "resumed" or "new"
end
request[K["probe"]] = function(r) return r:ranges() .. " ranges" end
reply[K["probe"]] = request[K["probe"]]
request[K["path"]] = function(r)
    local number = r:uint("path.number", 4)
    local mtu = r:uint("path.mtu", 2)
    if mtu < T.min_mtu then bad("bad value in MTU") end
    local length = r:left()
    if length > 0 then
        local padding = r:take(length)
        r.tree:add(F["path.padding"], padding)
        if padding:raw():find("[^%z]") then bad("bad value in padding") end
    end
    return "probe " .. number .. ", mtu " .. mtu .. ", " .. length .. " bytes of padding"
end
reply[K["path"]] = request[K["path"]]
request[K["progress"]] = function(r)
    local progress = r:code("progress", T.progress, "progress")
    local count = r:ranges()
    return T.progress[progress] .. ", " .. count .. " ranges missing"
end
reply[K["progress"]] = request[K["progress"]]
request[K["notify"]] = function(r)
    r:uint("notify.number", 8)
    local event = r:code("notify.event", T.event, "event")
    r:uint("notify.ioc", 2)
    r:observed()
    return T.event[event]
end
for _, kind in ipairs({ "notify", "notify-ack" }) do
    request[K[kind]] = request[K["notify"]]
    reply[K[kind]] = request[K["notify"]]
end
request[K["discover"]] = function(r)
    r:guid("discover.asker", true)
    return T.role[r:code("discover.role", T.role, "role")]
end
reply[K["discover"]] = request[K["discover"]]
request[K["here"]] = function(r)
    local guid = r:guid("here.fabric", true)
    r:uint("here.incarnation", 8)
    return guid
end
reply[K["here"]] = request[K["here"]]
request[K["register"]] = function(r)
    r:guid("member.guid", true)
    local name, entity = r:station()
    r:observed()
    r:cluster("register.cluster")
    local start = r.pos
    local home = r:cluster("placement.home")
    r:uint("placement.assignment", 8)
    r:list("guests.count", "guest_record", T.max_guests, "guest clusters", function(g)
        local guest = g:cluster("guest")
        if guest:find("^%z*$") or guest == home then bad("bad value in guest clusters") end
        return guest, nil, guest
    end)
    local said = r.range:range(start, r.pos - start):raw()
    if entity == T.entity[1] and said:find("[^%z]") then bad("bad value in placement") end
    return entity .. " " .. name
end
reply[K["register"]] = function(r)
    local cluster = r:cluster("register.cluster")
    r:uint("register.version", 8)
    r:uint("register.assignment", 8)
    return cluster
end
request[K["membership"]] = function(r)
    r:uint("membership.known_version", 8)
    r:guid("after")
end
reply[K["membership"]] = function(r)
    r:uint("membership.version", 8)
    local unchanged = r:bool("membership.unchanged")
    local more = r:bool("more")
    local count = r:list("members.count", "member", T.max_members, "members", function(m)
        local guid = m:guid("member.guid", true)
        local name, entity = m:station()
        m:observed()
        local word = m:ownership()
        m:uint("member.epoch", 8)
        m:uint("member.version", 8)
        if m:bool("member.guest") and entity == T.entity[1] then bad("bad value in guest") end
        return guid, guid, ("%s %s, %s"):format(entity, name, word)
    end)
    page_advances(more, count)
    if unchanged and count > 0 then bad("bad value in unchanged") end
    return unchanged and "unchanged" or count .. " members"
end
request[K["unit-ownership"]] = function(r)
    r:guid("unit_ownership.unit", true)
    local word = r:ownership()
    r:uint("unit_ownership.epoch", 8)
    return word
end
request[K["find-host"]] = function(r)
    local cluster = r:cluster("find.cluster")
    if cluster:find("^%z*$") then bad("bad value in cluster name") end
    local host = r:text("find.host", T.max_name_bytes)
    if host == "" then bad("bad value in name") end
    return host .. " of " .. cluster
end
reply[K["find-host"]] = function(r) return r:guid("found.host", true) end
request[K["in-use"]] = function(r)
    local before
    local count = r:list("rows.count", "use_record", T.max_changes, "rows", function(c)
        local row = c:guid("use.row", true)
        if before and not (before < row) then bad("bad value in rows") end
        before = row
        return nil, row
    end)
    if count == 0 then bad("bad value in rows") end
    return count .. " rows"
end
reply[K["in-use"]] = function(r)
    local row = r:guid("use.row")
    local users = r:text("use.users", 255)
    if row:find("^%z*$") then return "none" end
    return users
end
request[K["table-stamp"]] = function(r)
    if r:left() > 0 then return r:summary() end
end
reply[K["table-stamp"]] = function(r) return r:summary() end
request[K["table-rows"]] = function(r)
    r:guid("after")
    local level, count = r:parts()
    return level == 0 and "all" or ("%d parts at level %d"):format(count, level)
end
request[K["table-digests"]] = function(r)
    local level, count = r:parts()
    local depth = r:uint("digests.depth", 1)
    if depth < 1 or depth > 2 or level + depth > T.max_part_level then
        bad("bad value in depth")
    end
    if count * 2 ^ (4 * depth) > T.max_parts then bad("digests over its limit") end
    return ("%d parts at level %d, %d deeper"):format(count, level, depth)
end
reply[K["table-digests"]] = function(r)
    r:summary()
    r:settings()
    local count = r:uint("digests.count", 4)
    if count > T.max_parts then bad("digests over its limit") end
    for _ = 1, count do r:uint("digest", 8) end
    return count .. " digests"
end
reply[K["table-rows"]] = function(r)
    r:summary()
    r:settings()
    local more = r:bool("more")
    local count = r:rows(true)
    page_advances(more, count)
    return count .. " rows" .. (more and ", more follow" or "")
end
request[K["offer"]] = function(r)
    r:summary()
    r:settings()
    return r:rows(false) .. " rows"
end
reply[K["offer"]] = reply[K["table-stamp"]]
request[K["deposit"]] = function(r)
    r:summary()
    r:settings()
    r.tree:add(F["deposit.base"], r:take(16))
    local piece = r:uint("deposit.piece", 4)
    local more = r:bool("more")
    r:parts()
    return ("piece %d, %d rows"):format(piece, r:rows(true)) .. (more and ", more follow" or "")
end
reply[K["deposit"]] = reply[K["table-stamp"]]
request[K["lease"]] = function(r)
    local verb = r:code("lease.verb", T.lease_verb, "lease verb")
    local force = r:bool("lease.force")
    local term, label = r:holder()
    local name = T.lease_verb[verb]
    if (term == ZERO64) ~= (name == "query") then bad("bad value in term") end
    if force and name ~= "ask" then bad("bad value in force") end
    return name .. (force and " by force " or " ") .. label
end
reply[K["lease"]] = function(r)
    local granted = r:bool("lease.granted")
    local promised = r:uint("lease.promised", 8)
    r:settings()
    r:uint("lease.held", 8)
    r:uint("lease.left", 8)
    local count = r:uint("holders.count", 1)
    if count > 1 then bad("holders over its limit") end
    local text = granted and "granted" or "not granted"
    if count == 1 then
        local term, label = r:holder()
        if term == ZERO64 or digits(promised) < digits(term) then bad("bad value in term") end
        text = text .. ", " .. label
    elseif granted then
        bad("bad value in holders")
    end
    return text
end
request[K["settle"]] = function(r) return r:settings() end
reply[K["settle"]] = request[K["settle"]]
reply[K["controllers"]] = function(r)
    r:guid("unit.guid", true)
    local name = r:text("unit.name", T.max_name_bytes)
    r:text("unit.vendor", T.max_label_bytes)
    r:text("unit.model", T.max_label_bytes)
    r:text("unit.serial", T.max_label_bytes)
    r:macs(4, 1)
    r:observed()
    r:listed()
    local count = r:list("controllers.count", "controller_record", T.max_controllers,
        "controllers", function(c)
            local guid = c:guid("controller.guid", true)
            local ioc = c:uint("controller.ioc", 2)
            if ioc == 0 then bad("bad value in controller number") end
            local text = c:text("controller.name", T.max_name_bytes)
            c:text("controller.model", T.max_label_bytes)
            c:observed()
            return ioc, guid, ("%d %s"):format(ioc, text)
        end)
    return ("%s, %d controllers"):format(name, count)
end
request[K["registers"]] = function(r) r:guid("after") end
reply[K["registers"]] = function(r) return r:registers() end
request[K["compare-and-set"]] = function(r)
    r:uint("change.term", 8)
    r:guid("change.writer", true)
    local bytes = 0
    local count = r:list("changes.count", "change", T.max_changes, "changes", function(c)
        local start = c.pos
        local row = c:guid("change.row", true)
        if c:uint("change.expected", 8) == ("\255"):rep(8) then bad("bad value in epoch") end
        local word = c:ownership()
        c:extent_facts(row, word)
        -- As a register of the answer it also has a term and a writer.
        bytes = bytes + c.pos - start + 24
        return nil, row, word
    end)
    if count == 0 then bad("bad value in changes") end
    if bytes > T.max_page_bytes then bad("changes over its limit") end
    return count .. " changes"
end
reply[K["compare-and-set"]] = reply[K["registers"]]
request[K["restore"]] = function(r)
    r:uint("restore.term", 8)
    local before = r:guid("after")
    local more = r:bool("more")
    local count = r:list("registers.count", "register_record", T.max_registers, "registers",
        function(g)
            local row, word = g:register()
            if not (before < row) then bad("bad value in registers") end
            before = row
            return nil, nil, word
        end)
    page_advances(more, count)
    return count .. " registers" .. (more and ", more follow" or "")
end
request[K["move"]] = function(r)
    r:uint("move.term", 8)
    r:guid("move.writer", true)
    r:guid("move.row", true)
    local top = ("\255"):rep(7)
    local expected = r:uint("move.expected", 8)
    if expected:sub(1, 7) == top and expected:byte(8) > 253 then bad("bad value in epoch") end
    local cluster = r:cluster("move.to")
    if cluster:find("^%z*$") then bad("bad value in cluster name") end
    r:guid("move.owner", true)
    r:bool("move.recursive")
    return "to " .. cluster
end
reply[K["move"]] = reply[K["registers"]]
reply[K["devices"]] = function(r)
    r:guid("devices.controller", true)
    r:listed()
    return r:list("devices.count", "device_record", T.max_devices, "devices",
        function(d) return d:device() end) .. " devices"
end
reply[K["identify"]] = function(r)
    local _, _, label = r:device()
    r:register()
    return label
end
-- The bytes in front of a write's data.
local IO_RANGE_BYTES = 32
local function io_range(r)
    local range = r.range
    r:guid("io.extent")
    r:uint("io.offset", 8)
    r:uint("io.length", 8)
    return ("%s+%s"):format(tostring(range:range(r.pos - 16, 8):uint64()),
        tostring(range:range(r.pos - 8, 8):uint64()))
end
request[K["read"]] = io_range
request[K["flush"]] = function(r)
    r:guid("io.extent")
    local zero = ("\0"):rep(8)
    local offset, len = r:uint("io.offset", 8), r:uint("io.length", 8)
    if offset ~= zero or len ~= zero then bad("bad value in range") end
end
request[K["discard"]] = io_range
request[K["write-zeroes"]] = io_range

-- Data is shown segment by segment and not put together.
local function data(r)
    if r:left() > 0 then r.tree:add(F.data, r:take(r:left())) end
end
local function is_data(h)
    return (h.kind == K["write"] and not h.reply)
        or (h.kind == K["read"] and h.reply and h.status == STATUS_OK)
end
local function data_segment(h, r)
    local text
    if h.kind == K["write"] and h.segment_offset == 0 then
        text = io_range(r)
        if h.message_length - IO_RANGE_BYTES ~= r.range:range(24, 8):uint64():tonumber() then
            data(r)
            bad("bad value in length")
        end
    end
    data(r)
    return text
end

-- Which function reads a whole body; nil: it is empty.
local function body_reader(h)
    if not h.reply then return request[h.kind] end
    if h.status == STATUS_OK then return reply[h.kind] end
    if h.message_length == 0 then return nil end
    if h.kind == K["compare-and-set"] or h.kind == K["move"] then
        return function(r)
            local _, word = r:register()
            return word .. " is in the way"
        end
    end
    -- The session's own kinds have the same body whatever the status.
    if h.kind == K["probe"] or h.kind == K["progress"] or h.kind == K["notify"]
        or h.kind == K["notify-ack"] or h.kind == K["discover"] or h.kind == K["here"] then
        return request[h.kind]
    end
    return nil
end

------------------------------------------------------------------------------------------------
-- What frames have to do with each other. Learned in the first pass, kept by frame number.

local frames       -- number of the frame and of the packet in it -> what was found out about it
local exchanges    -- session, kind and command -> request and reply
local latest       -- connection and command -> the exchange, for what is refused
local sessions     -- connection -> its session, so that a reconnect keeps exchanges together
local connects     -- nonce and initiator -> session

function rma.init()
    frames, exchanges, latest, sessions, connects = {}, {}, {}, {}, {}
end

-- Adds [from, to) to a sorted list of ranges; says whether something of it was new.
local function cover(ranges, from, to)
    local n = #ranges
    if n > 0 and ranges[n][2] == from then -- the usual case: the next in order
        ranges[n][2] = to
        return true
    end
    local before, after, new = {}, {}, true
    for _, range in ipairs(ranges) do
        if range[1] <= from and range[2] >= to then new = false end
        if range[2] < from then
            before[#before + 1] = range
        elseif range[1] > to then
            after[#after + 1] = range
        else
            from, to = math.min(from, range[1]), math.max(to, range[2])
        end
    end
    for i = #ranges, 1, -1 do ranges[i] = nil end
    for _, range in ipairs(before) do ranges[#ranges + 1] = range end
    ranges[#ranges + 1] = { from, to }
    for _, range in ipairs(after) do ranges[#ranges + 1] = range end
    return new
end

-- One direction of an exchange takes a segment.
local function take_segment(side, h, number, payload)
    local from, to = h.segment_offset, h.segment_offset + h.payload_length
    side.first = side.first or number
    if h.message_length == 0 then
        local new = not side.done
        side.done = side.done or number
        return new
    end
    side.ranges = side.ranges or {}
    local new = cover(side.ranges, from, to)
    if not side.done then
        if not is_data(h) and h.payload_length < h.message_length then
            side.segments = side.segments or {}
            side.segments[#side.segments + 1] = { from, payload }
        end
        if #side.ranges == 1 and side.ranges[1][1] == 0 and side.ranges[1][2] >= h.message_length then
            side.done = number
        end
    end
    return new
end

-- The whole message, where it came in more than one segment.
local function whole_message(side, h)
    if not side.segments then return nil end
    table.sort(side.segments, function(a, b) return a[1] < b[1] end)
    local parts, at = {}, 0
    for _, segment in ipairs(side.segments) do
        local from, bytes = segment[1], segment[2]
        if from <= at and from + #bytes > at then
            parts[#parts + 1] = bytes:sub(at - from + 1)
            at = from + #bytes
        end
    end
    side.segments = nil
    return at == h.message_length and table.concat(parts) or nil
end

-- What a frame is in its exchange: a request and its reply need each other; a message need not be
-- answered by a frame of its own, a report answers one.
local REQUEST, REPLY, MESSAGE, REPORT = 1, 2, 3, 4

-- Which exchange a frame belongs to, and as what.
local function exchange_of(h, pinfo, payload)
    local connection = h.connection
    local role = h.reply and REPLY or REQUEST
    if h.kind == K["connect"] then
        local initiator = tostring(h.reply and pinfo.dl_dst or pinfo.dl_src)
        return "connect" .. initiator .. h.ioc .. h.command, role
    elseif h.kind == K["disconnect"] then
        return "disconnect" .. connection .. h.command, MESSAGE
    elseif h.kind == K["probe"] then
        return "probe" .. connection .. h.command, MESSAGE
    elseif h.kind == K["progress"] then
        return "probe" .. connection .. h.command, REPORT
    elseif h.kind == K["path"] then
        -- One that is too long for the path has no answer.
        return "path" .. connection .. payload:sub(1, 4), h.reply and REPORT or MESSAGE
    elseif h.kind == K["notify"] or h.kind == K["notify-ack"] then
        local is_ack = h.kind == K["notify-ack"]
        return "notify" .. connection .. payload:sub(1, 8), is_ack and REPORT or MESSAGE
    elseif h.kind == K["discover"] then
        return "discover" .. tostring(pinfo.dl_src), MESSAGE
    elseif h.kind == K["here"] then
        return "discover" .. tostring(pinfo.dl_dst), REPORT
    end
    return (sessions[connection] or connection) .. string.char(h.kind) .. h.command, role
end

local function learn_session(h, pinfo, payload)
    if h.kind ~= K["connect"] then return end
    local nonce = tostring(h.reply and pinfo.dl_dst or pinfo.dl_src) .. h.ioc .. h.command
    if not h.reply and #payload >= 32 then
        -- Initiator, incarnation and session lead the body.
        connects[nonce] = payload:sub(1, 32)
    elseif h.reply and h.status == STATUS_OK and connects[nonce] and #payload >= 16 then
        -- The responder's GUID leads the reply.
        sessions[h.connection] = "session" .. connects[nonce] .. payload:sub(1, 16) .. h.ioc
    end
end

-- First pass: puts the frame where it belongs.
local function relate(h, pinfo, payload)
    local number = pinfo.number
    local key, role = exchange_of(h, pinfo, payload)
    learn_session(h, pinfo, payload)
    local info = { is_reply = role == REPLY or role == REPORT, role = role }
    if h.kind == K["refused"] then
        -- It answers a frame of whatever kind; the kind is not in it.
        local refused = latest[h.connection .. h.command]
        if refused then refused.refused = refused.refused or number end
        info.is_reply = true
        info.exchange = { request = {}, reply = {} }
        info.response_to = refused and refused.request.first
        info.asked_at = refused and refused.time
        return info
    end
    local exchange = exchanges[key]
    local begins = not exchange
    if h.kind == K["probe"] or h.kind == K["discover"] then
        begins = true -- these have no identity of their own
    elseif h.kind == K["keep-alive"] and exchange and not info.is_reply then
        begins = exchange.reply.first ~= nil
    end
    if begins then
        exchange = { request = {}, reply = {} }
        exchanges[key] = exchange
    end
    info.exchange = exchange
    if info.is_reply then
        info.response_to, info.asked_at = exchange.request.first, exchange.time
        info.unmatched = role == REPLY and not exchange.request.first
        local repeated = exchange.reply.first
        if not take_segment(exchange.reply, h, number, payload) then
            info.retransmission_of = repeated
        elseif exchange.reply.done == number then
            info.message = whole_message(exchange.reply, h)
        end
    else
        latest[h.connection .. h.command] = exchange
        local repeated = exchange.request.first
        if take_segment(exchange.request, h, number, payload) then
            exchange.time = exchange.time or pinfo.rel_ts
            if exchange.request.done == number then
                info.message = whole_message(exchange.request, h)
            end
        elseif repeated then
            info.retransmission_of = repeated
        end
    end
    return info
end

------------------------------------------------------------------------------------------------
-- Frames

local function header(tvb, tree, service)
    local h = { version = tvb(0, 1):uint() }
    local sub = tree:add(F.header, tvb(0, T.header_len))
    sub:add(F.version, tvb(0, 1))
    if h.version ~= T.version then return h, "version" end
    h.kind = tvb(1, 1):uint()
    sub:add(F.kind, tvb(1, 1))
    h.flags = tvb(2, 2):uint()
    local flags = sub:add(F.flags, tvb(2, 2))
    local flag_names, known = {}, 0
    for i, flag in ipairs(T.flags) do
        flags:add(flag_fields[i], tvb(2, 2))
        known = known + flag[1]
        if band(h.flags, flag[1]) ~= 0 then
            flag_names[#flag_names + 1] = flag[2]
            h[flag[2]] = true
        end
    end
    h.flag_text = table.concat(flag_names, "+")
    if #flag_names > 0 then flags:append_text(" (" .. h.flag_text .. ")") end
    h.payload_length = tvb(4, 2):uint()
    sub:add(F.payload_length, tvb(4, 2))
    h.ioc = tvb(6, 2):uint()
    sub:add(F.ioc, tvb(6, 2))
    h.iod = tvb(8, 2):uint()
    sub:add(F.iod, tvb(8, 2))
    h.status = tvb(10, 2):uint()
    h.status_item = sub:add(F.status, tvb(10, 2))
    sub:add(F.outstanding, tvb(12, 2))
    sub:add(F.credits, tvb(14, 2))
    h.checksum_item = sub:add(F.checksum, tvb(16, 4))
    h.segment_offset = tvb(20, 4):uint()
    sub:add(F["segment.offset"], tvb(20, 4))
    h.message_length = tvb(24, 4):uint()
    sub:add(F.message_length, tvb(24, 4))
    sub:add(F.reserved, tvb(28, 4))
    h.connection = tvb(32, 8):raw()
    sub:add(F.connection, tvb(32, 8))
    h.command = tvb(40, 8):raw()
    h.command_text = tostring(tvb(40, 8):uint64())
    sub:add(F.command, tvb(40, 8))
    sub:add(F.epoch, tvb(48, 8))
    local cluster = cluster_text(tvb(56, 16):raw())
    sub:add(F.cluster, tvb(56, 16), cluster or "?")
    sub:add(F.tag, tvb(72, 16))
    h.is_zero = tvb(28, 4):uint() == 0 and tvb(72, 16):raw() == NIL
    h.cluster = cluster
    h.known_flags = band(h.flags, bnot(known)) == 0
    local class = T.kind_service[h.kind]
    h.known_kind = T.kind[h.kind] ~= nil and (class == nil or class == service)
    return h
end

-- The reason for which a receiver would drop the frame, or nil: the same checks in the same order.
local function judge(h, tvb, sum_is_good)
    if tvb:reported_len() < T.header_len + h.payload_length then return "truncated" end
    if not sum_is_good then return "checksum" end
    if not h.known_kind then return "unknown kind" end
    if not (h.known_flags and T.status[h.status] and h.cluster and h.is_zero) then
        return "reserved bits"
    end
    local last = h.segment_offset + h.payload_length
    if last > h.message_length or h.message_length > T.max_message_bytes
        or (h.payload_length == 0 and h.message_length ~= 0) then
        return "lengths"
    end
end

local function mark_malformed(tree, reason, detail)
    local text = detail and reason .. ": " .. detail or reason
    tree:add(F.malformed, reason):set_generated()
    tree:add_proto_expert_info(reason == "checksum" and X.checksum or X.malformed, text)
end

-- Reads a whole body; gives the text for the Info column, or nil and what is wrong.
local function dissect_body(h, range, tree)
    local read = body_reader(h)
    local r = new_reader(range, tree)
    local ok, result = pcall(function()
        local text
        if is_data(h) then
            if h.kind == K["write"] and h.segment_offset == 0 and r.len < IO_RANGE_BYTES
                and h.message_length < IO_RANGE_BYTES then
                bad("truncated")
            end
            if r.len >= IO_RANGE_BYTES or h.kind == K["read"] or h.segment_offset > 0 then
                text = data_segment(h, r)
            else
                data(r)
            end
        elseif read then
            text = read(r)
        end
        r:finish()
        return text
    end)
    if ok then return result end
    if getmetatable(result) == Bad then return nil, result.what end
    error(result, 0) -- a mistake of this script
end

local function show_relations(h, info, tree, pinfo)
    local exchange = info.exchange
    local function generated(abbr, ...) return tree:add(F[abbr], ...):set_generated() end
    if info.is_reply then
        if info.response_to then
            generated("response_to", info.response_to)
            if info.asked_at then
                local time = math.max(0, pinfo.rel_ts - info.asked_at)
                local seconds = math.floor(time)
                generated("time", NSTime.new(seconds, math.floor((time - seconds) * 1e9 + 0.5)))
            end
        end
        if info.unmatched then
            generated("unmatched", true)
            tree:add_proto_expert_info(X.unmatched)
        end
    else
        local answer = exchange.reply.done or exchange.reply.first or exchange.refused
        if answer then
            generated("response_in", answer)
        elseif pinfo.visited and info.role == REQUEST and exchange.request.first == pinfo.number then
            generated("unanswered", true)
            tree:add_proto_expert_info(X.unanswered)
        end
    end
    if info.retransmission_of then
        generated("retransmission_of", info.retransmission_of)
        tree:add_proto_expert_info(X.retransmission)
    end
end

local function show_segment(h, info, tvb, tree, pinfo)
    local payload = h.payload_length > 0 and tvb(T.header_len, h.payload_length) or nil
    if h.kind == K["refused"] or is_data(h) or h.payload_length == h.message_length then
        return dissect_body(h, payload, tree)
    end
    tree:add(F["segment.data"], payload)
    local side = info.is_reply and info.exchange.reply or info.exchange.request
    if info.message then
        local whole = ByteArray.new(info.message, true):tvb("RMA message")
        tree:add(F["reassembled.length"], #info.message):set_generated()
        return dissect_body(h, whole(), tree)
    elseif side.done then
        tree:add(F["reassembled_in"], side.done):set_generated()
    end
end

-- Shows the first packet in `tvb`, the `index`th of its frame. Gives a text for the Info column, and where the
-- next packet begins.
local function packet(tvb, pinfo, root, service, index)
    local tree = root:add(rma, tvb())
    if tvb:len() < T.header_len then
        if tvb:reported_len() < T.header_len then
            mark_malformed(tree, "truncated")
            return "[truncated]"
        end
        tree:add_proto_expert_info(X.cut)
        return nil
    end
    local h, reason = header(tvb, tree, service)
    if reason then
        mark_malformed(tree, reason)
        return "[" .. reason .. "]"
    end
    local last = T.header_len + h.payload_length
    local is_cut = tvb:len() < last and tvb:reported_len() >= last
    local name = T.kind[h.kind] or "unknown kind"
    local title = name .. (h.flag_text ~= "" and " (" .. h.flag_text .. ")" or "")
    tree:append_text(": " .. title)

    local key = pinfo.number .. "." .. index
    local info = frames[key]
    if not info then
        local sum_is_good = true
        if rma.prefs.verify and tvb:len() >= last then
            local frame = tvb(0, last):raw()
            sum_is_good = tvb(16, 4):uint() == crc32(frame:sub(1, 16) .. "\0\0\0\0" .. frame:sub(21))
        end
        reason = judge(h, tvb, sum_is_good)
        if reason or is_cut then
            info = { reason = reason }
        else
            info = relate(h, pinfo, h.payload_length > 0 and tvb(T.header_len, h.payload_length):raw() or "")
        end
        frames[key] = info
    end
    -- Behind a packet that a receiver drops nothing is looked for.
    local next_at
    if service and not info.reason and tvb:len() >= last + T.header_len and tvb(last, 1):uint() ~= 0 then
        next_at = last
        tree:set_len(last)
    end

    local text, what
    reason = info.reason
    if info.exchange then
        show_relations(h, info, tree, pinfo)
        text, what = show_segment(h, info, tvb, tree, pinfo)
        if what then reason = "bad body" end
    elseif is_cut and not reason then
        tree:add_proto_expert_info(X.cut)
    end
    if reason then
        mark_malformed(tree, reason, what)
        title = ("[%s%s] %s"):format(reason, what and ": " .. what or "", title)
    else
        local parts = { title, "#" .. h.command_text }
        if h.ioc ~= 0 then
            parts[#parts + 1] = h.iod ~= 0 and h.ioc .. "/" .. h.iod or "ioc " .. h.ioc
        end
        if h.status ~= STATUS_OK then
            parts[#parts + 1] = T.status[h.status]
            h.status_item:add_proto_expert_info(X.status, T.status[h.status])
        end
        if h.payload_length < h.message_length then
            parts[#parts + 1] = ("[%d..%d of %d]"):format(h.segment_offset,
                h.segment_offset + h.payload_length, h.message_length)
        end
        if text then parts[#parts + 1] = text end
        title = table.concat(parts, " ")
    end
    if tvb:len() > last and not next_at then tree:add(F.padding, tvb(last)) end
    return title, next_at
end

function rma.dissector(tvb, pinfo, root)
    local service = pinfo.match_uint == rma.prefs.service
    pinfo.cols.protocol = "RMA"
    local texts, index, rest = {}, 1, tvb
    repeat
        local text, next_at = packet(rest, pinfo, root, service, index)
        texts[#texts + 1] = text
        index = index + 1
        rest = next_at and rest(next_at):tvb()
    until not rest
    if #texts > 0 then pinfo.cols.info = table.concat(texts, " | ") end
    return tvb:len()
end

------------------------------------------------------------------------------------------------
-- EtherTypes

local registered = {}
local function register()
    local ethertypes = DissectorTable.get("ethertype")
    for _, number in ipairs(registered) do ethertypes:remove(number, rma) end
    registered = { rma.prefs.management, rma.prefs.service }
    for _, number in ipairs(registered) do ethertypes:add(number, rma) end
end
rma.prefs_changed = register
register()
