// Flows, kept where their packets are: the same as netio/flow_table.py, bit by bit. What a record means says
// netio/flow_record.py, what the other structs mean `flow_layout.py`, and who runs what when `device_flow_batch.py`.
//
// Packets are in the order of their arrival; `order` leads from a place, where packets lie sorted by flow, to a packet.
// A run is the places of one flow, a chunk at most CHUNK places of a run, a segment the places of a chunk that belong to
// one record. All threads walk their places in order, so that they may do what a plain loop over packets does.

#define FREE_PLACE 0ull
#define LOWER 0xFFFFFFFFull
#define GONE_PLACE LOWER
#define EARLIEST (-0x7FFFFFFFFFFFFFFFll - 1)
#define LATEST 0x7FFFFFFFFFFFFFFFll
#define MOST_U8 0xFFFFFFFFFFFFFFFFull

// Nanoseconds between times that lie in this order: an i64 would not hold all.
__device__ static inline u64 elapsed(i64 earlier, i64 later) { return (u64)later - (u64)earlier; }

__device__ static inline u64 capped_sum(u64 one, u64 other) {
    const u64 sum = one + other;
    return sum < one ? MOST_U8 : sum;
}

__device__ static inline u64 capped_square(u64 value) { return value > LOWER ? MOST_U8 : value * value; }

__device__ static inline u64 capped_us(u64 gap_ns) { return gap_ns / 1000 > LOWER ? LOWER : gap_ns / 1000; }

__device__ static inline bool same_key(const u64* one, const u64* other) {
    bool same = true;
    for (int word = 0; word < KEY_WORDS; word++) same &= one[word] == other[word];
    return same;
}

__device__ static inline u64 hash_of(const u64* key, u64 seed) {
    u64 hash = mix(0, seed);
    for (int word = 0; word < KEY_WORDS; word++) hash = mix(hash, key[word]);
    return mixed(hash);
}

// --- one record ---

__device__ static void clear(Record& it) {
    it = Record();
    for (int side = 0; side < 2; side++) {
        it.gap_least_ns[side] = MOST_U8;
        it.size_least[side] = (u32)LOWER;
    }
}

__device__ static inline bool has_packets(const Record& it) { return it.packets[0] | it.packets[1]; }

__device__ static inline bool is_decided(const Record& it) { return it.seen & 0xF; }

__device__ static u32 originator(const Record& it) {
    if (!is_decided(it)) return it.origin;
    for (int place = 0;; place++) {
        const u32 code = it.letters[place] - 1u;
        // Codes 0 and 3, a SYN of side 0 and a SYN-ACK of side 1, say side 0.
        if (code < 4) return (code ^ code >> 1) & 1;
    }
}

__device__ static i64 begun_of(const Record& it) {
    const i64 zero = it.packets[0] ? it.begun_ns[0] : LATEST, one = it.packets[1] ? it.begun_ns[1] : LATEST;
    return zero < one ? zero : one;
}

__device__ static i64 latest_of(const Record& it) {
    const i64 zero = it.packets[0] ? it.latest_ns[0] : EARLIEST, one = it.packets[1] ? it.latest_ns[1] : EARLIEST;
    return zero > one ? zero : one;
}

// Of a record that a time-out has ended: whether the active one did, or had before the idle one. 0 = no time-out.
__device__ static bool cut_by_active(i64 begun, i64 latest, u64 idle, u64 active) {
    if (!active) return false;
    return !idle || elapsed(begun, latest) + idle > active;
}

__device__ static void append(Record& it, u32 code) { it.letters[it.letter_count++] = (u8)(code + 1); }

__device__ static void append_repeat(Record& it, u32 code) {
    if (it.repeats >= MOST_REPEATS) return;
    it.repeats++;
    append(it, code);
}

__device__ static void add_gap(Record& it, u32 side, u64 gap) {
    if (gap < it.gap_least_ns[side]) it.gap_least_ns[side] = gap;
    if (gap > it.gap_most_ns[side]) it.gap_most_ns[side] = gap;
    it.gap_squares[side] = capped_sum(it.gap_squares[side], capped_square(gap / 1000));
}

// Adds a packet; `first_seqs` is that of a part, or null.
__device__ static void add(Record& it, const Arrival& packet, i64 clock, u32 (*first_seqs)[REPEATED_KINDS]) {
    const u32 code = packet.code, side = code & 1, kind = code >> 1;
    const u64 before = it.packets[side]++;
    u64 gap = 0;
    if (before) {
        gap = elapsed(it.latest_ns[side], clock);
        add_gap(it, side, gap);
    } else {
        it.begun_ns[side] = clock;
    }
    it.latest_ns[side] = clock;
    if (before < FIRST) {
        it.first_sizes[side][before] = packet.wire;
        it.first_gaps_us[side][before] = (u32)capped_us(gap);
    }
    it.wire_bytes[side] += packet.wire;
    it.ip_bytes[side] += packet.ip;
    it.payload_bytes[side] += packet.payload;
    it.size_squares[side] = capped_sum(it.size_squares[side], capped_square(packet.wire));
    if (packet.wire < it.size_least[side]) it.size_least[side] = packet.wire;
    if (packet.wire > it.size_most[side]) it.size_most[side] = packet.wire;
    for (u32 flags = packet.flags; flags; flags &= flags - 1) it.flag_counts[side][lowest(flags)]++;
    if (kind == Letter_NONE) return;
    const u32 place = repeated_place(kind);
    if (!(it.seen >> code & 1)) {
        it.seen |= 1u << code;
        append(it, code);
        if (place && first_seqs) first_seqs[side][place - 1] = packet.seq;
    } else if (place && it.last_seqs[side][place - 1] != packet.seq) {
        append_repeat(it, code);
    }
    if (place) it.last_seqs[side][place - 1] = packet.seq;
}

__device__ static void join_side(Record& it, const Record& later, u32 side) {
    if (!later.packets[side]) return;
    const u64 before = it.packets[side];
    u64 gap = 0;
    if (before) {
        gap = elapsed(it.latest_ns[side], later.begun_ns[side]);
        add_gap(it, side, gap);
    } else {
        it.begun_ns[side] = later.begun_ns[side];
    }
    it.latest_ns[side] = later.latest_ns[side];
    for (u64 at = 0; before + at < FIRST && at < later.packets[side]; at++) {
        it.first_sizes[side][before + at] = later.first_sizes[side][at];
        it.first_gaps_us[side][before + at] = at ? later.first_gaps_us[side][at] : (u32)capped_us(gap);
    }
    it.packets[side] += later.packets[side];
    it.wire_bytes[side] += later.wire_bytes[side];
    it.ip_bytes[side] += later.ip_bytes[side];
    it.payload_bytes[side] += later.payload_bytes[side];
    it.size_squares[side] = capped_sum(it.size_squares[side], later.size_squares[side]);
    it.gap_squares[side] = capped_sum(it.gap_squares[side], later.gap_squares[side]);
    if (later.gap_least_ns[side] < it.gap_least_ns[side]) it.gap_least_ns[side] = later.gap_least_ns[side];
    if (later.gap_most_ns[side] > it.gap_most_ns[side]) it.gap_most_ns[side] = later.gap_most_ns[side];
    if (later.size_least[side] < it.size_least[side]) it.size_least[side] = later.size_least[side];
    if (later.size_most[side] > it.size_most[side]) it.size_most[side] = later.size_most[side];
    for (u32 flag = 0; flag < FLAGS; flag++) it.flag_counts[side][flag] += later.flag_counts[side][flag];
}

// Adds what came after: afterwards the record says what it would if all packets had been added one by one.
__device__ static void join(Record& it, const Part& part) {
    const Record& later = part.record;
    for (u32 side = 0; side < 2; side++) join_side(it, later, side);
    u32 met = 0;
    for (u32 at = 0; at < later.letter_count; at++) {
        const u32 code = later.letters[at] - 1u, side = code & 1, place = repeated_place(code >> 1);
        const bool is_first = !(met >> code & 1);
        met |= 1u << code;
        if (!is_first) {
            append_repeat(it, code);
        } else if (!(it.seen >> code & 1)) {
            it.seen |= 1u << code;
            append(it, code);
        } else if (place && it.last_seqs[side][place - 1] != part.first_seqs[side][place - 1]) {
            append_repeat(it, code);
        }
    }
    for (u32 code = 0; code < 2 * Letter_NONE; code++) {
        const u32 side = code & 1, place = repeated_place(code >> 1);
        if (place && met >> code & 1) it.last_seqs[side][place - 1] = later.last_seqs[side][place - 1];
    }
}

// --- packets ---

// Writes key, hash and arrival of some packets.
//
//   rows: (count,), which packets: rows of the columns, from `first` on.
//   vlan_outer, vlan_inner: null where VLANs do not count. tunnel, tunnel_id: the same of tunnels.
//   keys: (count, KEY_WORDS). arrivals, hashes: (count,).
extern "C" __global__ void arrive_flows(
    const i64* rows, u64 count, u64 first, u64 seed, const u8* version, const u64* src_high, const u64* src_low,
    const u64* dst_high, const u64* dst_low, const u16* sport, const u16* dport, const u8* protocol,
    const u16* fragment_offset, const u32* total_length, const u32* payload_wire, const u16* tcp_flags, const u32* seq,
    const u8* icmp_type, const u8* icmp_code, const u16* vlan_outer, const u16* vlan_inner, const u8* tunnel,
    const u32* tunnel_id, const i64* time_ns, const u32* wire, u64* keys, Arrival* arrivals, u64* hashes
) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const i64 row = rows[at];
    const u64 source[3] = {src_high[row], src_low[row], sport[row]};
    const u64 destination[3] = {dst_high[row], dst_low[row], dport[row]};
    bool after = source[2] > destination[2];
    for (int half = 1; half >= 0; half--) {
        after = source[half] > destination[half] || (source[half] == destination[half] && after);
    }
    u64 key[KEY_WORDS];
    for (int half = 0; half < 2; half++) {
        key[half] = after ? destination[half] : source[half];
        key[2 + half] = after ? source[half] : destination[half];
    }
    const bool is_later = fragment_offset[row] > 0;
    const u64 ports = (after ? destination[2] : source[2]) << 16 | (after ? source[2] : destination[2]);
    const u64 carried = tunnel ? tunnel[row] : 0, portless = is_later && has_ports(protocol[row]);
    key[4] = ports << 32 | (u64)protocol[row] << 24 | carried << 16 | (u64)version[row] << 8 | portless;
    key[5] = vlan_outer ? (u64)vlan_outer[row] << 48 | (u64)vlan_inner[row] << 32 : UNTAGGED;
    if (tunnel_id) key[5] |= tunnel_id[row];

    const u32 flags = tcp_flags[row], payload = payload_wire[row];
    u32 kind = Letter_NONE;
    if (!is_later && protocol[row] == TCP) kind = tcp_kinds[(flags & 0x17) | (payload > 0) << 5];
    if (!is_later && protocol[row] == UDP) kind = Letter_DATA;
    Arrival arrival = {};
    arrival.time_ns = time_ns[row];
    arrival.row = (u32)(row - (i64)first);
    arrival.wire = wire[row];
    arrival.ip = total_length[row];
    arrival.payload = payload;
    arrival.seq = seq[row];
    arrival.code = (u8)(kind << 1 | after);
    arrival.flags = (u8)flags;
    arrival.icmp[0] = icmp_type[row];
    arrival.icmp[1] = icmp_code[row];
    arrivals[at] = arrival;
    for (int word = 0; word < KEY_WORDS; word++) keys[at * KEY_WORDS + word] = key[word];
    hashes[at] = hash_of(key, seed);
}

// Marks where runs start.
//
//   starts: (count,), whether the flow of a place is another than that of the place before.
//   collided: set where two of these have the same hash: the places may not be sorted by key then.
extern "C" __global__ void mark_flow_runs(
    const u64* keys, const u64* hashes, const i64* order, u64 count, u8* starts, u32* collided
) {
    const u64 place = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= count) return;
    bool differs = true;
    if (place) {
        const i64 here = order[place], before = order[place - 1];
        const bool alike = hashes[here] == hashes[before];
        differs = !(alike && same_key(keys + here * KEY_WORDS, keys + before * KEY_WORDS));
        if (differs && alike) *collided = 1;
    }
    starts[place] = differs;
}

// --- the index ---

// Finds the slot of each run's flow: (runs,), -1 where it has none.
//
//   begin: (runs,), the first place of each. index, shift, last: see `DeviceFlowIndex`.
extern "C" __global__ void find_flows(
    const i64* begin, u64 runs, const i64* order, const u64* keys, const u64* hashes, const u64* index, u64 shift,
    u64 last, const Record* records, i64* slots
) {
    const u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    const i64 row = order[begin[run]];
    const u64 hash = hashes[row];
    i64 found = -1;
    for (u64 at = hash >> shift;; at = (at + 1) & last) {
        const u64 place = index[at];
        if (place == FREE_PLACE) break;
        if (place >> 32 != (hash & LOWER) || (place & LOWER) == GONE_PLACE) continue;
        const i64 slot = (i64)(place & LOWER) - 1;
        if (same_key(records[slot].key, keys + row * KEY_WORDS)) {
            found = slot;
            break;
        }
    }
    slots[run] = found;
}

// Adds slots to the index; their keys differ from each other's and from all that are there.
extern "C" __global__ void index_flows(
    const i64* slots, u64 count, const Record* records, u64 seed, u64* index, u64 shift, u64 last
) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const i64 slot = slots[at];
    const u64 hash = hash_of(records[slot].key, seed), entry = hash << 32 | (u64)(slot + 1);
    for (u64 where = hash >> shift;; where = (where + 1) & last) {
        u64 there = index[where];
        while (there == FREE_PLACE || (there & LOWER) == GONE_PLACE) {
            const u64 was = atomicCAS(&index[where], there, entry);
            if (was == there) return;
            there = was;
        }
    }
}

// Takes slots out of the index, and opens them for others.
extern "C" __global__ void forget_flows(
    const i64* slots, u64 count, const Record* records, u64 seed, u64* index, u64 shift, u64 last, u8* states
) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    const i64 slot = slots[at];
    const u64 hash = hash_of(records[slot].key, seed), entry = hash << 32 | (u64)(slot + 1);
    u64 where = hash >> shift;
    while (index[where] != entry) where = (where + 1) & last;
    index[where] = GONE_PLACE;
    states[slot] = Slot_OPEN;
}

// --- where records begin ---

// The latest time of each chunk's packets: (chunks,).
//
//   chunk_begin: (chunks,), the first place of each; the last ends at `count`.
extern "C" __global__ void find_chunk_times(
    const Arrival* arrivals, const i64* order, u64 count, const i64* chunk_begin, u64 chunks, i64* times
) {
    const u64 chunk = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    const i64 end = chunk + 1 < chunks ? chunk_begin[chunk + 1] : (i64)count;
    i64 latest = EARLIEST;
    for (i64 place = chunk_begin[chunk]; place < end; place++) {
        const i64 time = arrivals[order[place]].time_ns;
        if (time > latest) latest = time;
    }
    times[chunk] = latest;
}

// Puts the clock before each chunk in the place of its latest time.
//
//   first_chunk: (runs,), of each run. slots: (runs,), -1 where the table does not know the flow.
extern "C" __global__ void carry_clocks(
    const i64* first_chunk, u64 runs, u64 chunks, const i64* slots, const i64* latest, i64* times
) {
    const u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    const i64 end = run + 1 < runs ? first_chunk[run + 1] : (i64)chunks;
    i64 clock = slots[run] < 0 ? EARLIEST : latest[slots[run]];
    for (i64 chunk = first_chunk[run]; chunk < end; chunk++) {
        const i64 time = times[chunk];
        times[chunk] = clock;
        if (time > clock) clock = time;
    }
}

// Writes the clock at each place, and where records begin, as far as it does not matter when the record before began.
//
//   run: (count,), of each place. begin: (runs,), the first place of each. slots, times: as of `carry_clocks`.
//   begun, states: of the table. idle, active: nanoseconds, 0 for no time-out.
//   clocks, begins: (count,).
//   open_end: (chunks,), the first place of which that is known. chunk_begun: when the chunk's last record began.
extern "C" __global__ void cut_flow_chunks(
    const Arrival* arrivals, const i64* order, u64 count, const i64* chunk_begin, u64 chunks, const i64* run,
    const i64* begin, const i64* slots, const i64* begun, const u8* states, const i64* times, u64 idle, u64 active,
    i64* clocks, u8* begins, i64* open_end, i64* chunk_begun
) {
    const u64 chunk = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (chunk >= chunks) return;
    const i64 first = chunk_begin[chunk], end = chunk + 1 < chunks ? chunk_begin[chunk + 1] : (i64)count;
    const i64 slot = slots[run[first]];
    const bool starts_run = begin[run[first]] == first;
    i64 clock = times[chunk], since = 0, known_from = end;
    if (starts_run && slot >= 0 && states[slot] == Slot_LIVE) {
        since = begun[slot];
        known_from = first;
    }
    for (i64 place = first; place < end; place++) {
        const i64 before = clock, time = arrivals[order[place]].time_ns;
        if (time > clock) clock = time;
        const bool is_first = starts_run && place == first;
        u32 how = Begins_NOT;
        if (is_first && slot < 0) {
            how = Begins_ANEW;
        } else if (idle && elapsed(before, clock) >= idle) {
            how = Begins_ANEW;
        } else if (is_first && states[slot] == Slot_EMPTY) {
            since = clock;
            known_from = place;
        } else if (active && known_from <= place && elapsed(since, clock) >= active) {
            how = Begins_CUT;
        }
        if (how != Begins_NOT) {
            since = clock;
            if (known_from > place) known_from = place;
        }
        clocks[place] = clock;
        begins[place] = (u8)how;
    }
    open_end[chunk] = known_from;
    chunk_begun[chunk] = since;
}

// Finds the other places where the active time-out makes records begin. Arguments as of `cut_flow_chunks`.
extern "C" __global__ void carry_cuts(
    const i64* first_chunk, u64 runs, u64 count, const i64* chunk_begin, u64 chunks, u64 active, const i64* clocks,
    const i64* open_end, const i64* chunk_begun, u8* begins
) {
    const u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    const i64 last = run + 1 < runs ? first_chunk[run + 1] : (i64)chunks;
    i64 since = chunk_begun[first_chunk[run]];
    for (i64 chunk = first_chunk[run] + 1; chunk < last; chunk++) {
        const i64 first = chunk_begin[chunk], end = (u64)chunk + 1 < chunks ? chunk_begin[chunk + 1] : (i64)count;
        const i64 open = open_end[chunk];
        if (open > first && elapsed(since, clocks[open - 1]) >= active) {
            for (i64 place = first; place < open; place++) {
                if (elapsed(since, clocks[place]) < active) continue;
                begins[place] = Begins_CUT;
                since = clocks[place];
            }
        }
        if (open < end) since = chunk_begun[chunk];
    }
}

// --- records ---

// Where a record that gets packets lies: in a slot of the table, or, counted down from -1, among those that end.
__device__ static inline Record& at_home(Record* records, Record* ended, i64 home) {
    return home >= 0 ? records[home] : ended[-1 - home];
}

// Copies what the table has of flows that end here, before others take their slots.
//
//   slots: (runs,), -1 where the table does not know the flow. number: (count,), the record of each place.
//   homes: (records that get packets,). left: (runs,), where to copy a record that gets none.
extern "C" __global__ void leave_flows(
    const i64* begin, u64 runs, const i64* slots, const u8* begins, const i64* number, const i64* homes,
    const i64* left, const Record* records, Record* ended
) {
    const u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs || slots[run] < 0) return;
    const i64 first = begin[run], home = homes[number[first]];
    if (begins[first] != Begins_NOT) ended[left[run]] = records[slots[run]];
    else if (home < 0) ended[-1 - home] = records[slots[run]];
}

// Adds the packets of each segment, a record's first one to the record, each other one to a part.
//
//   serial: of the piece's first packet. segment_begin: (segments,), the first place of each.
//   heads: (count,), whether a place is the first of a record. number, homes: as of `leave_flows`.
//   parts: (segments - records,).
extern "C" __global__ void add_flow_segments(
    const Arrival* arrivals, const i64* order, const u64* keys, u64 count, u64 serial, const i64* segment_begin,
    u64 segments, const u8* heads, const u8* begins, const i64* number, const i64* homes, const i64* clocks,
    Record* records, Record* ended, Part* parts
) {
    const u64 segment = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (segment >= segments) return;
    const i64 first = segment_begin[segment], end = segment + 1 < segments ? segment_begin[segment + 1] : (i64)count;
    if (!heads[first]) {
        Part& part = parts[segment - 1 - (u64)number[first]];
        clear(part.record);
        for (i64 place = first; place < end; place++) {
            add(part.record, arrivals[order[place]], clocks[place], part.first_seqs);
        }
        return;
    }
    Record& it = at_home(records, ended, homes[number[first]]);
    const Arrival& opening = arrivals[order[first]];
    if (begins[first] != Begins_NOT) {
        clear(it);
        for (int word = 0; word < KEY_WORDS; word++) it.key[word] = keys[order[first] * KEY_WORDS + word];
        it.origin = opening.code & 1;
        it.icmp[0] = opening.icmp[0];
        it.icmp[1] = opening.icmp[1];
        it.is_continued = begins[first] == Begins_CUT;
    }
    if (!has_packets(it)) it.serial = serial + opening.row;
    for (i64 place = first; place < end; place++) add(it, arrivals[order[place]], clocks[place], 0);
}

// Joins parts to their records, tells records what those before them said, and why they ended.
//
//   homes_of_runs: (runs,), the slot of each. known: (runs,), whether the table knew the flow.
//   head_segment: (records that get packets,), the first segment of each. reasons: by place among those that end.
//   begun, latest, states: of the table.
extern "C" __global__ void settle_flows(
    const i64* begin, u64 runs, const i64* run_slots, const u8* known, const u8* begins, const i64* number,
    const i64* head_begin, u64 heads, const i64* head_segment, u64 segments, const i64* homes, const i64* left,
    const Part* parts, u64 idle, u64 active, Record* records, Record* ended, u8* reasons, i64* begun, i64* latest,
    u8* states
) {
    const u64 run = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (run >= runs) return;
    const i64 first = begin[run], last = run + 1 < runs ? number[begin[run + 1]] : (i64)heads;
    i64 before = known[run] && begins[first] != Begins_NOT ? left[run] : -1;
    for (i64 head = number[first]; head < last; head++) {
        Record& it = at_home(records, ended, homes[head]);
        const i64 end = (u64)head + 1 < heads ? head_segment[head + 1] : (i64)segments;
        for (i64 segment = head_segment[head] + 1; segment < end; segment++) join(it, parts[segment - 1 - head]);
        if (before >= 0) {
            const Record& earlier = ended[before];
            if (begins[head_begin[head]] == Begins_CUT) {
                it.origin = (u8)originator(earlier);
                it.icmp[0] = earlier.icmp[0];
                it.icmp[1] = earlier.icmp[1];
            }
            const bool by_active = cut_by_active(begun_of(earlier), latest_of(earlier), idle, active);
            reasons[before] = by_active ? Reason_ACTIVE : Reason_IDLE;
        }
        before = -1 - homes[head];
    }
    const Record& open = records[run_slots[run]];
    begun[run_slots[run]] = begun_of(open);
    latest[run_slots[run]] = latest_of(open);
    states[run_slots[run]] = Slot_LIVE;
}

// --- without packets ---

// Says of each slot what time has made of it: a `Due`.
extern "C" __global__ void find_due_flows(
    u64 count, u64 now_ns, u64 idle, u64 active, const i64* begun, const i64* latest, const u8* states, u8* due
) {
    const u64 slot = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (slot >= count) return;
    const i64 now = (i64)now_ns;
    u32 found = Due_NOT;
    if (states[slot] != Slot_OPEN) {
        if (idle && latest[slot] < now && elapsed(latest[slot], now) >= idle) {
            found = cut_by_active(begun[slot], latest[slot], idle, active) ? Due_ACTIVE : Due_IDLE;
        } else if (active && states[slot] == Slot_LIVE && begun[slot] < now && elapsed(begun[slot], now) >= active) {
            found = Due_CUT;
        }
    }
    due[slot] = (u8)found;
}

// Empties records of flows that go on after their active time-out.
extern "C" __global__ void empty_flows(const i64* slots, u64 count, Record* records, u8* states) {
    const u64 at = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= count) return;
    Record& it = records[slots[at]];
    const Record before = it;
    clear(it);
    for (int word = 0; word < KEY_WORDS; word++) it.key[word] = before.key[word];
    it.origin = (u8)originator(before);
    it.icmp[0] = before.icmp[0];
    it.icmp[1] = before.icmp[1];
    it.is_continued = 1;
    states[slots[at]] = Slot_EMPTY;
}
