// First matches, a thread a key, in the structures of netio: `flat.py` lays them out. Balance, by the same keys.

// The members of what `flat.py` lays out are 8 bytes wide: pointers, and numbers.

struct AddressMap {
    u64 kind;           // MAP_*
    const void* first;  // walk: top; searches: starts, or their upper halves
    const void* second;  // walk: middle; of pairs: lower halves
    const void* third;  // of pairs: codes
    const i32* numbers;  // walk: last
    u64 firsts, seconds, thirds;  // how many there are
};

struct Field {
    u64 of;  // FIELD_*
    const i32* table;
    u64 count;
    const i32* joined;
};

struct Services {
    u64 fields;
    Field field[5];
};

struct Family {
    u64 rules;
    u64 words;  // of an address: one u32, or two u64
    const void* prefix[4];
    const void* mask[4];
    const u16* port_low[2];
    const u16* port_high[2];
    const u8* protocol;
    const u8* protocol_mask;
    const u16* vlan;
    const u16* vlan_mask;
    const u8* tcp_flags;
    const u8* tcp_flags_mask;
};

struct ClassTables {
    AddressMap source, destination;
    Services services;
    u64 order[3];
    const i32* pairs;
    u64 pairs_wide;
    const i32* matches;
    u64 matches_wide;
};

struct Vectors {
    const u64* tops;
    const i32* pages;
    const u64* summaries;
    const u64* words;
};

struct BitVectors {
    AddressMap source, destination;
    Services services;
    Vectors vectors[3];
    u64 pages;
    const i32* rows;
    const i32* earliest;
};

struct TupleTables {
    Family family;
    AddressMap source, destination;
    u64 columns;  // words of a row
    const u64* by[5];  // source class, destination class, source port, destination port, protocol
    u64 masks;
    const void* mask[5];
    const i32* earliest;
    const i32* buckets;
    u64 shift;
    const i32* rules;
};

struct Structure {
    u64 kind;         // STRUCTURE_*
    const void* is;
    const i32* rows;  // of the whole set, by the family's rule; null where they are the same
};

// A key: addresses as words, upper half first.
struct Key {
    u64 source[2], destination[2];
    u32 value[5];  // FIELD_*
};

// Columns of keys; a null pointer stands for what all keys have.
struct Keys {
    const u8* version;
    const void* address[4];  // source high and low, destination high and low
    const u16* port[2];
    const u8* protocol;
    const u16* vlan;
    const u8* tcp_flags;
    u32 common_version;
    u32 narrow;      // addresses are u32, in the columns of lower halves
    u32 stride;      // from an address to the next
    u32 flag_bytes;  // from a key's flags to the next's
};

__device__ static inline u32 upper_bound(const void* sorted, bool narrow, u64 count, u64 value) {
    u64 low = 0, high = count;
    while (low < high) {
        const u64 middle = (low + high) >> 1;
        const u64 there = narrow ? ((const u32*)sorted)[middle] : ((const u64*)sorted)[middle];
        if (there <= value) low = middle + 1;
        else high = middle;
    }
    return (u32)low;
}

__device__ static u32 locate(const AddressMap& map, const u64* address) {
    if (map.kind == MAP_WALK) {
        const u32 word = (u32)address[1];
        i32 entry = ((const i32*)map.first)[word >> 16];
        entry = ((const i32*)map.second)[(entry >> 1) + (i32)(word >> 8 & 0xFF) * (entry & 1)];
        return (u32)map.numbers[(entry >> 1) + (i32)(word & 0xFF) * (entry & 1)];
    }
    if (map.kind == MAP_SEARCH) return (u32)map.numbers[upper_bound(map.first, true, map.firsts, address[1]) - 1];
    const u32 rank = upper_bound(map.first, false, map.firsts, address[0]) - 1;
    // Past an upper half where no interval begins, every lower half is beyond the last beginning before it.
    const bool begins = ((const u64*)map.first)[rank] == address[0];
    const u64 inside = begins ? upper_bound(map.second, false, map.seconds, address[1]) : map.seconds;
    return (u32)map.numbers[upper_bound(map.third, false, map.thirds, rank * (map.seconds + 1) + inside) - 1];
}

__device__ static u32 service_class(const Services& services, const Key& key) {
    u32 found = 0;
    for (u64 at = 0; at < services.fields; at++) {
        const Field& field = services.field[at];
        found = (u32)field.joined[found * field.count + field.table[key.value[field.of]]];
    }
    return found;
}

__device__ static inline u64 word_of(const void* words, u64 narrow, u64 at) {
    return narrow ? ((const u32*)words)[at] : ((const u64*)words)[at];
}

// Word `at` of the addresses of a key, source first.
__device__ static inline u64 key_word(const Key& key, u64 words, u64 at) {
    const u64* address = at < words ? key.source : key.destination;
    return address[words == 1 ? 1 : at % words];
}

__device__ static bool matches(const Family& family, u64 rule, const Key& key) {
    for (u64 at = 0; at < 2 * family.words; at++) {
        const u64 mask = word_of(family.mask[at], family.words == 1, rule);
        if ((key_word(key, family.words, at) & mask) != word_of(family.prefix[at], family.words == 1, rule)) return false;
    }
    for (int side = 0; side < 2; side++) {
        const u32 port = key.value[side];
        if (port < family.port_low[side][rule] || port > family.port_high[side][rule]) return false;
    }
    return (key.value[FIELD_protocol] & family.protocol_mask[rule]) == family.protocol[rule] &&
           (key.value[FIELD_vlan] & family.vlan_mask[rule]) == family.vlan[rule] &&
           (key.value[FIELD_tcp_flags] & family.tcp_flags_mask[rule]) == family.tcp_flags[rule];
}

__device__ static i32 first_of(const Family& family, const Key& key) {
    for (u64 rule = 0; rule < family.rules; rule++) {
        if (matches(family, rule, key)) return (i32)rule;
    }
    return -1;
}

__device__ static i32 first_of(const ClassTables& tables, const Key& key) {
    const u32 found[3] = {
        locate(tables.source, key.source), locate(tables.destination, key.destination),
        service_class(tables.services, key)
    };
    // Without an index that the compiler does not know the three stay in registers.
    const u32 left = tables.order[0] == 0 ? found[0] : found[1];
    const u32 right = tables.order[1] == 1 ? found[1] : found[2];
    const u32 last = tables.order[2] == 2 ? found[2] : tables.order[2] == 1 ? found[1] : found[0];
    const u64 pair = (u64)tables.pairs[left * tables.pairs_wide + right];
    return tables.matches[pair * tables.matches_wide + last];
}

__device__ static inline u32 lowest(u64 word) { return (u32)__ffsll((long long)word) - 1; }

__device__ static i32 first_of(const BitVectors& bits, const Key& key) {
    const u64 at[3] = {
        locate(bits.source, key.source), locate(bits.destination, key.destination), service_class(bits.services, key)
    };
    u64 tops = bits.vectors[0].tops[at[0]] & bits.vectors[1].tops[at[1]] & bits.vectors[2].tops[at[2]];
    for (; tops; tops &= tops - 1) {
        const u32 page = lowest(tops);
        u64 left = ~(u64)0;
        const u64* words[3];
        for (int field = 0; field < 3; field++) {
            const Vectors& vectors = bits.vectors[field];
            const u64 number = (u64)vectors.pages[at[field] * bits.pages + page];
            left &= vectors.summaries[number];
            words[field] = vectors.words + number * 64;
        }
        i32 best = NO_RULE;
        for (; left; left &= left - 1) {
            const u32 bit = lowest(left), word = page * 64 + bit;
            if (bits.earliest[word] >= best) break;
            const u64 matched = words[0][bit] & words[1][bit] & words[2][bit];
            if (matched) {
                const i32 rule = bits.rows[word * 64 + lowest(matched)];
                if (rule < best) best = rule;
            }
        }
        if (best != NO_RULE) return best;
    }
    return -1;
}

__device__ static inline u64 mix(u64 hash, u64 word) {
    hash = (hash ^ word) * 0x9E3779B97F4A7C15ull;
    return hash ^ hash >> 32;
}

__device__ static inline u64 mixed(u64 hash) { return hash * 0x9E3779B97F4A7C15ull; }

__device__ static inline u64 service_word(const Key& key) {
    return (u64)key.value[FIELD_source_port] << 24 | (u64)key.value[FIELD_destination_port] << 8 |
           key.value[FIELD_protocol];
}

__device__ static i32 first_of(const TupleTables& tuples, const Key& key) {
    const Family& family = tuples.family;
    const u64 at[5] = {
        locate(tuples.source, key.source), locate(tuples.destination, key.destination), key.value[FIELD_source_port],
        key.value[FIELD_destination_port], key.value[FIELD_protocol]
    };
    i32 found = NO_RULE;
    for (u64 column = 0; column < tuples.columns; column++) {
        if (tuples.earliest[column * 64] >= found) break;
        u64 left = ~(u64)0;
        for (int by = 0; by < 5; by++) left &= tuples.by[by][at[by] * tuples.columns + column];
        for (; left; left &= left - 1) {
            const u64 table = column * 64 + lowest(left);
            if (tuples.earliest[table] >= found) break;
            u64 hash = mix(0, table);
            for (u64 word = 0; word + 1 < tuples.masks; word++) {
                const u64 mask = word_of(tuples.mask[word], family.words == 1, table);
                hash = mix(hash, key_word(key, family.words, word) & mask);
            }
            hash = mix(hash, service_word(key) & ((const u64*)tuples.mask[tuples.masks - 1])[table]);
            const u64 bucket = mixed(hash) >> tuples.shift;
            for (i32 place = tuples.buckets[bucket]; place < tuples.buckets[bucket + 1]; place++) {
                const i32 rule = tuples.rules[place];
                if (rule >= found) break;
                if (matches(family, (u64)rule, key)) {
                    found = rule;
                    break;
                }
            }
        }
    }
    return found == NO_RULE ? -1 : found;
}

__device__ static Key key_at(const Keys& keys, u64 row) {
    Key key;
    const u64 at = row * keys.stride;
    u64 address[4];
    for (int part = 0; part < 4; part++) {
        if (keys.narrow) address[part] = part & 1 ? ((const u32*)keys.address[part])[at] : 0;
        else address[part] = ((const u64*)keys.address[part])[at];
    }
    key.source[0] = address[0];
    key.source[1] = address[1];
    key.destination[0] = address[2];
    key.destination[1] = address[3];
    key.value[FIELD_source_port] = keys.port[0][row];
    key.value[FIELD_destination_port] = keys.port[1][row];
    key.value[FIELD_protocol] = keys.protocol[row];
    key.value[FIELD_vlan] = keys.vlan ? keys.vlan[row] : NO_VLAN;
    key.value[FIELD_tcp_flags] = keys.tcp_flags ? keys.tcp_flags[row * keys.flag_bytes] : 0;
    return key;
}

#define KEY_ARGUMENTS                                                                                              \
    const u8 *version, const void *source_high, const void *source_low, const void *destination_high,             \
        const void *destination_low, const u16 *source_port, const u16 *destination_port, const u8 *protocol,      \
        const u16 *vlan, const u8 *tcp_flags, u32 common_version, u32 narrow, u32 stride, u32 flag_bytes, u64 rows
#define KEYS                                                                                                      \
    {version, {source_high, source_low, destination_high, destination_low}, {source_port, destination_port},      \
     protocol, vlan, tcp_flags, common_version, narrow, stride, flag_bytes}

// Writes the first rule of the set that matches each key, -1 for none.
//
//   four, six: the structures of each IP version, null where it has no rules.
//   out: (rows,).
extern "C" __global__ void classify(KEY_ARGUMENTS, const Structure* four, const Structure* six, i32* out) {
    const u64 row = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const Keys keys = KEYS;
    const u32 is = keys.version ? keys.version[row] : keys.common_version;
    const Structure* structure = is == 4 ? four : is == 6 ? six : 0;
    i32 found = -1;
    if (structure) {
        const Key key = key_at(keys, row);
        switch (structure->kind) {
            case STRUCTURE_ClassTables: found = first_of(*(const ClassTables*)structure->is, key); break;
            case STRUCTURE_BitVectors: found = first_of(*(const BitVectors*)structure->is, key); break;
            case STRUCTURE_TupleTables: found = first_of(*(const TupleTables*)structure->is, key); break;
            case STRUCTURE_LinearScan: found = first_of(*(const Family*)structure->is, key); break;
        }
        if (found >= 0 && structure->rows) found = structure->rows[found];
    }
    out[row] = found;
}

// Writes the back end of each flow, as `maglev.py` has it.
//
//   slots: (count,), of the Maglev table.
//   out: (rows,).
extern "C" __global__ void balance(KEY_ARGUMENTS, const i32* slots, u64 count, i32* out) {
    const u64 row = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const Keys keys = KEYS;
    const Key key = key_at(keys, row);
    u64 hash = mix(mix(mix(mix(0, key.source[0]), key.source[1]), key.destination[0]), key.destination[1]);
    out[row] = slots[mixed(mix(hash, service_word(key))) % count];
}
