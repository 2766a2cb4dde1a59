// Dissection, a thread a packet. The same as netio/layers, header by header and bit by bit; what each header means is
// said there. Kinds, errors, tunnels, columns and the numbers that lead from header to header are made from netio's.

#define LEAST_ETHERTYPE 0x0600

// How much of a header is there.
enum { GONE, PART, WHOLE };

struct Walk {
    const u8* blob;
    i64 start, at, end, limit;
    u32 kind;
    u32 tags;
    bool fragment;  // more fragments follow, so that lengths inside say more than is there
    bool first;     // nothing but first headers was read so far
    // Where the payload of the header that carries a tunnel lies, and the tunnel; 0 = none was entered.
    i64 entered_at, entered_end, entered_limit;
    u32 entered_tunnel, entered_id;
    bool split;  // the outer header stands in its columns
    u64 row;
    const Out* out;
    Plain plain;
    Header header;

    // Bytes ahead of the header at hand, 0 where the packet has ended.
    __device__ u32 b(i64 ahead) const { return at + ahead < end ? blob[at + ahead] : 0; }
    __device__ u32 n16(i64 ahead) const { return b(ahead) << 8 | b(ahead + 1); }
    __device__ u32 n32(i64 ahead) const { return n16(ahead) << 16 | n16(ahead + 2); }
    __device__ u64 n64(i64 ahead) const { return (u64)n32(ahead) << 32 | n32(ahead + 4); }

    __device__ void note(u32 error) {
        if (plain.error == Error_NONE) plain.error = (u8)error;
    }

    __device__ void fail(u32 error) {
        note(error);
        kind = Kind_DONE;
    }

    __device__ int read(i64 size, i64 least) {
        if (end - at >= size) return WHOLE;
        fail(at + size > limit && !fragment ? Error_BAD_LENGTH : Error_TRUNCATED);
        return end - at >= least ? PART : GONE;
    }

    __device__ bool whole(i64 size) { return read(size, size) == WHOLE; }

    __device__ void go(i64 to, u32 next) {
        at = to;
        kind = next;
    }

    __device__ bool tag() {
        if (++tags <= MAX_TAGS) return true;
        fail(Error_LOOP_LIMIT);
        return false;
    }

    __device__ bool count_ip() {
        if (plain.ip_headers < MAX_IP_HEADERS) return true;
        fail(Error_LOOP_LIMIT);
        return false;
    }

    __device__ void shorten(i64 to) {
        if (to > limit) {
            if (!fragment) note(Error_BAD_LENGTH);
            to = limit;
        }
        limit = to;
        if (end > to) end = to;
    }

    __device__ void enter(u32 tunnel, u32 id) {
        entered_at = at;
        entered_end = end;
        entered_limit = limit;
        entered_tunnel = tunnel;
        entered_id = id;
    }

    __device__ void payload(i64 from, i64 until, i64 wire) {
        if (from > wire) from = wire;
        header.payload_offset = (u32)(from - start);
        header.payload_wire = (u32)(wire - from);
        header.payload_captured = until > from ? (u32)(until - from) : 0;
    }

    __device__ void leave_outer() {
        const u32 headers = plain.ip_headers++;
        if (headers == 0) return;
        if (headers == 1) {
            if (entered_tunnel == 0) enter(Tunnel_IP, 0);
            payload(entered_at, entered_end, entered_limit);
            store_header(*out, row, OUTER, header);
            split = true;
            plain.tunnel = (u8)entered_tunnel;
            plain.tunnel_id = entered_id;
        }
        clear_partial(header);
    }

    __device__ void name(u32 ethertype) {
        if (first) plain.ethertype = ethertype < LEAST_ETHERTYPE ? 0 : (u16)ethertype;
    }

    __device__ void follow(i64 to, u32 ethertype) {
        if (ethertype < LEAST_ETHERTYPE) {
            shorten(to + ethertype);
            go(to, Kind_LLC);
        } else {
            go(to, after_ethertype(ethertype));
        }
    }

    // --- link.py ---

    __device__ void ethernet() {
        if (!whole(14)) return;
        const u32 ethertype = n16(12);
        name(ethertype);
        follow(at + 14, ethertype);
    }

    __device__ void llc() {
        if (!whole(3)) return;
        const u32 sap = n16(0), oui = n32(3) >> 8;
        const bool is_plain = b(2) == 0x03;
        const bool snap = is_plain && sap == 0xAAAA && (oui == 0x000000 || oui == 0x0000F8);
        const bool ip = is_plain && sap == 0x0606;
        go(at + (snap ? 8 : 3), snap ? after_ethertype(n16(6)) : ip ? Kind_IPV4 : Kind_DONE);
    }

    __device__ void cooked(i64 to, u32 ethertype) {
        name(ethertype);
        go(to, ethertype == 4 ? Kind_LLC : after_ethertype(ethertype));
    }

    __device__ void sll() {
        if (whole(16)) cooked(at + 16, n16(14));
    }

    __device__ void sll2() {
        if (whole(20)) cooked(at + 20, n16(0));
    }

    __device__ void null() {
        if (!whole(4)) return;
        const u32 upper = n16(0), lower = n16(2);
        const u32 family = upper == 0 ? lower : lower == 0 ? (upper >> 8 | (upper & 0xFF) << 8) : 0;
        const u32 next = after_family(family);
        go(at + 4, next == Kind_DONE ? after_ethertype(lower) : next);
    }

    __device__ void loop() {
        if (whole(4)) go(at + 4, after_family(n16(0) == 0 ? n16(2) : 0));
    }

    __device__ void hdlc() {
        if (!whole(4)) return;
        const u32 ethertype = n16(2);
        name(ethertype);
        go(at + 4, after_ethertype(ethertype));
    }

    __device__ void raw() {
        if (!whole(1)) return;
        kind = after_nibble(b(0) >> 4);
        if (kind == Kind_DONE) fail(Error_BAD_VERSION);
    }

    // --- tags.py ---

    __device__ void vlan() {
        if (!tag() || !whole(4)) return;
        if (plain.ip_headers == 0) {
            const u16 id = (u16)(n16(0) & 0x0FFF);
            if (plain.vlan_outer == NO_VLAN) plain.vlan_outer = id;
            else plain.vlan_inner = id;
        }
        follow(at + 4, n16(2));
    }

    __device__ void pppoe() {
        if (!whole(6)) return;
        shorten(at + 6 + n16(4));
        go(at + 6, Kind_PPP);
    }

    __device__ void ppp() {
        if (!whole(1)) return;
        const bool framed = n16(0) == 0xFF03;
        u32 protocol = framed ? n16(2) : n16(0);
        const bool is_short = protocol & 0x0100;
        if (is_short) protocol >>= 8;
        go(at + (framed ? 2 : 0) + (is_short ? 1 : 2), after_ppp(protocol));
    }

    __device__ void mpls() {
        if (!tag() || !whole(4)) return;
        const u32 entry = n32(0), label = entry >> 12;
        if (plain.mpls_label == NO_LABEL && plain.ip_headers == 0) plain.mpls_label = label;
        const bool bottom = entry & 0x100;
        if (!bottom) {
            go(at + 4, Kind_MPLS);
            return;
        }
        const u32 nibble = b(4) >> 4;
        u32 next = after_nibble(nibble);
        const bool is_plain = next == Kind_DONE && after_ethertype(n16(4 + 12)) != Kind_DONE;
        const bool worded = nibble == 0 && after_ethertype(n16(4 + 4 + 12)) != Kind_DONE && !is_plain;
        if (is_plain || worded) next = Kind_ETHERNET;
        if (label == 13 || label == 14) next = Kind_DONE;
        const bool unseen = end == at + 4 && limit > at + 4;
        go(at + 4 + (worded ? 4 : 0), next);
        if (unseen) fail(Error_TRUNCATED);
    }

    // --- network.py ---

    __device__ void arp() {
        if (!whole(8)) return;
        const i64 size = 8 + 2 * (i64)(b(4) + b(5)), have = limit - at;
        kind = Kind_DONE;
        if (have < size) fail(Error_BAD_LENGTH);
        if (end - at < size) fail(Error_TRUNCATED);
        at += size < have ? size : have;
    }

    __device__ void ipv4() {
        if (!count_ip()) return;
        const int there = read(20, 16);
        if (there == GONE) return;
        const u32 size = (b(0) & 15) << 2, said = n16(2);
        if (b(0) >> 4 != 4) {
            fail(Error_BAD_VERSION);
            return;
        }
        if (size < 20 || (said < size && said > 0)) {
            fail(Error_BAD_LENGTH);
            return;
        }
        leave_outer();
        const i64 total = said == 0 ? limit - at : said;
        const u32 fragments = n16(6), offset = (fragments & 0x1FFF) << 3;
        if (fragments & 0x2000) fragment = true;
        header.version = 4;
        header.src_low = n32(12);
        header.dst_low = there == WHOLE ? n32(16) : 0;
        header.protocol = (u8)b(9);
        header.ttl = (u8)b(8);
        header.tos = (u8)b(1);
        header.header_length = (u8)size;
        header.total_length = (u32)total;
        header.identification = n16(4);
        header.dont_fragment = (fragments & 0x4000) != 0;
        header.more_fragments = (fragments & 0x2000) != 0;
        header.fragment_offset = (u16)offset;
        const i64 until = at + total;
        go(at + size, there == WHOLE && offset == 0 ? after_ipv4(header.protocol) : Kind_DONE);
        shorten(until);
    }

    __device__ void ipv6() {
        if (!count_ip()) return;
        const int there = read(40, 24);
        if (there == GONE) return;
        if (b(0) >> 4 != 6) {
            fail(Error_BAD_VERSION);
            return;
        }
        leave_outer();
        const u32 length = n16(4);
        header.version = 6;
        header.src_high = n64(8);
        header.src_low = n64(16);
        header.dst_high = there == WHOLE ? n64(24) : 0;
        header.dst_low = there == WHOLE ? n64(32) : 0;
        header.protocol = (u8)b(6);
        header.ttl = (u8)b(7);
        header.tos = (u8)(n16(0) >> 4);
        header.header_length = 40;
        header.total_length = length + 40;
        go(at + 40, there == WHOLE ? after_ipv6(header.protocol) : Kind_DONE);
        if (length != 0) shorten(at + length);
    }

    __device__ void extension() {
        if (!tag() || !whole(8)) return;
        const u32 current = header.protocol, following = b(0);
        const i64 length = b(1);
        const i64 size = current == 44 ? 8 : current == 51 ? (length + 2) << 2 : (length + 1) << 3;
        header.protocol = (u8)following;
        u32 next = header.version == 6 ? after_ipv6(following) : after_ipv4(following);
        if (current == 44) {
            const u32 fragments = n16(2);
            header.identification = n32(4);
            header.more_fragments = fragments & 1;
            header.fragment_offset = (u16)(fragments & 0xFFF8);
            if (fragments & 1) fragment = true;
            if (fragments & 0xFFF8) next = Kind_DONE;
        }
        go(at + size, next);
    }

    // --- transport.py ---

    __device__ void tcp() {
        const int there = read(20, 4);
        if (there == GONE) return;
        header.sport = (u16)n16(0);
        header.dport = (u16)n16(2);
        kind = Kind_DONE;
        if (there == PART) return;
        const u32 size = b(12) >> 4 << 2;
        header.seq = n32(4);
        header.ack = n32(8);
        header.window = (u16)n16(14);
        header.tcp_flags = (u16)(n16(12) & 0x0FFF);
        header.tcp_header_length = (u8)size;
        at += size;
        if (size < 20 || at > limit) fail(Error_BAD_LENGTH);
    }

    __device__ void udp() {
        const int there = read(8, 4);
        if (there == GONE) return;
        const u32 sport = n16(0), dport = n16(2), length = n16(4);
        header.sport = (u16)sport;
        header.dport = (u16)dport;
        kind = Kind_DONE;
        if (there == PART) return;
        const u32 named = after_port(dport);
        const i64 until = at + length;
        go(at + 8, named != Kind_DONE ? named : after_port(sport));
        if (length >= 8) shorten(until);
        else if (length != 0 || header.version != 6) fail(Error_BAD_LENGTH);
    }

    __device__ void ports() {
        if (!whole(4)) return;
        header.sport = (u16)n16(0);
        header.dport = (u16)n16(2);
        // The fifth byte of DCCP is its header's length in words, options included.
        const i64 size = header.protocol == 132 ? 12 : header.protocol == 33 ? (i64)b(4) << 2 : 8;
        go(at + size, Kind_DONE);
        if (at > limit) fail(Error_BAD_LENGTH);
    }

    __device__ void icmp() {
        const int there = read(8, 2);
        if (there == GONE) return;
        header.icmp_type = (u8)b(0);
        header.icmp_code = (u8)b(1);
        kind = Kind_DONE;
        if (there == WHOLE) at += 8;
    }

    // --- tunnels.py ---

    __device__ void gre() {
        if (!whole(4)) return;
        const u32 flags = n16(0), protocol = n16(2);
        const bool checked = flags & 0xC000, keyed = flags & 0x2000, numbered = flags & 0x1000;
        const bool later = (flags & 7) == 1;
        i64 size = 4 + 4 * checked + 4 * keyed + 4 * numbered + 4 * (later && (flags & 0x0080));
        enter(Tunnel_GRE, keyed && !later ? n32(4 + 4 * checked) : 0);
        u32 next = after_ethertype(protocol);
        if (protocol == 0x6558) next = Kind_ETHERNET;
        if (protocol == 0x880B) next = Kind_PPP;
        // ERSPAN without a sequence number is of the first type, which has no header of its own.
        if (protocol == 0x88BE || protocol == 0x22EB) next = Kind_ETHERNET;
        if (protocol == 0x88BE && numbered) size += 8;
        if (protocol == 0x22EB) size += 12 + 8 * (b(size + 12 - 1) & 1);
        // An acknowledgement of version 1 alone carries nothing, and has no sequence number.
        const bool ends = (flags & 0x4000) || (flags & 7) > 1 || (later && !numbered);
        go(at + size, ends ? Kind_DONE : next);
    }

    __device__ void vxlan() {
        if (!whole(8)) return;
        enter(Tunnel_VXLAN, n32(4) >> 8);
        go(at + 8, Kind_ETHERNET);
    }

    __device__ void geneve() {
        if (!whole(8)) return;
        const u32 protocol = n16(2);
        enter(Tunnel_GENEVE, n32(4) >> 8);
        const u32 next = protocol == 0x6558 ? Kind_ETHERNET : after_ethertype(protocol);
        go(at + 8 + ((b(0) & 0x3F) << 2), b(0) >> 6 == 0 ? next : Kind_DONE);
    }

    __device__ void gtp() {
        if (!whole(8)) return;
        const u32 flags = b(0);
        enter(Tunnel_GTP, n32(4));
        i64 size = flags & 0x07 ? 12 : 8;
        u32 following = flags & 0x04 ? b(11) : 0;
        for (int turn = 0; turn < MAX_GTP_EXTENSIONS && following != 0; turn++) {
            const i64 length = (i64)b(size) << 2;
            following = length > 0 ? b(size + length - 1) : 0;
            size += length;
        }
        const bool carries = (flags & 0xF0) == 0x30 && b(1) == 255 && following == 0;
        go(at + size, carries ? after_nibble(b(size) >> 4) : Kind_DONE);
    }

    __device__ void teredo() {
        enter(Tunnel_TEREDO, 0);
        i64 size = n16(0) == 1 ? 13 + (i64)b(2) + b(3) : 0;
        if (end - at > size + 8 && n16(size) == 0) size += 8;
        const bool six = after_nibble(b(size) >> 4) == Kind_IPV6;
        go(six ? at + size : at, six ? Kind_IPV6 : Kind_DONE);
    }

    __device__ void l2tp() {
        if (!whole(6)) return;
        const u32 flags = n16(0);
        enter(Tunnel_L2TP, 0);
        i64 size = 6 + (flags & 0x4000 ? 2 : 0) + (flags & 0x0800 ? 4 : 0);
        if (flags & 0x0200) size += 2 + (i64)n16(size);
        const bool data = (flags & 0x8000) == 0 && (flags & 0x000F) == 2;
        go(data ? at + size : at, data ? Kind_PPP : Kind_DONE);
    }

    // --- wireless.py ---

    __device__ u32 little32(i64 ahead) const {
        return b(ahead) | b(ahead + 1) << 8 | b(ahead + 2) << 16 | b(ahead + 3) << 24;
    }

    __device__ void radiotap() {
        if (!whole(8)) return;
        const u32 length = b(2) | b(3) << 8, present = little32(4);
        i64 fields = 8;
        bool more = present >> 31;
        for (int turn = 0; turn < MAX_PRESENT_WORDS && more; turn++) {
            more = little32(fields) >> 31;
            fields += 4;
        }
        if (present & 1) fields = ((fields + 7) & ~(i64)7) + 8;
        const u32 flags = present & 2 ? b(fields) : 0;
        go(at + length, flags & 0x20 ? Kind_PADDED_WIFI : Kind_WIFI);
        if (flags & 0x10) shorten(limit - 4 > at ? limit - 4 : at);
        if (length < 8) fail(Error_BAD_LENGTH);
    }

    __device__ void wifi(i64 multiple) {
        if (!whole(2)) return;
        const u32 control = b(0), flags = b(1);
        const bool data = (control >> 2 & 3) == 2 && (control >> 4 & 0x4) == 0 && (flags & 0x40) == 0;
        kind = Kind_DONE;
        if (!data || !whole(24)) return;
        const bool qos = control >> 4 & 0x8;
        i64 size = 24 + ((flags & 0x3) == 0x3 ? 6 : 0);
        const bool aggregate = qos && (b(size) & 0x80);
        size += (qos ? 2 : 0) + (qos && (flags & 0x80) ? 4 : 0);
        size = (size + multiple - 1) / multiple * multiple;
        go(at + size, (b(22) & 0x0F) == 0 && !aggregate ? Kind_LLC : Kind_DONE);
    }

    __device__ void step() {
        switch (kind) {
            case Kind_RADIOTAP: radiotap(); break;
            case Kind_WIFI: wifi(1); break;
            case Kind_PADDED_WIFI: wifi(4); break;
            case Kind_SLL: sll(); break;
            case Kind_SLL2: sll2(); break;
            case Kind_NULL: null(); break;
            case Kind_LOOP: loop(); break;
            case Kind_HDLC: hdlc(); break;
            case Kind_ETHERNET: ethernet(); break;
            case Kind_LLC: llc(); break;
            case Kind_VLAN: vlan(); break;
            case Kind_PPPOE: pppoe(); break;
            case Kind_PPP: ppp(); break;
            case Kind_MPLS: mpls(); break;
            case Kind_RAW: raw(); break;
            case Kind_ARP: arp(); break;
            case Kind_IPV4: ipv4(); break;
            case Kind_IPV6: ipv6(); break;
            case Kind_EXTENSION: extension(); break;
            case Kind_TCP: tcp(); break;
            case Kind_UDP: udp(); break;
            case Kind_PORTS: ports(); break;
            case Kind_ICMP: icmp(); break;
            case Kind_GRE: gre(); break;
            case Kind_VXLAN: vxlan(); break;
            case Kind_GENEVE: geneve(); break;
            case Kind_GTP: gtp(); break;
            case Kind_TEREDO: teredo(); break;
            case Kind_L2TP: l2tp(); break;
        }
    }
};

// Writes the columns of packets.
//
//   blob, blob_bytes: in which the packets lie, one after the other.
//   offsets: (rows + 1,), where they begin and end.
//   links: (rows,), or null where all are of `common_link`.
//   wire: (rows,), bytes on the wire, or null where that is what is there.
//   out, capacity, places: see `Out`.
extern "C" __global__ void dissect(
    const u8* blob, u64 blob_bytes, const u32* offsets, const u16* links, u32 common_link, const u32* wire, u64 rows,
    u8* out, u64 capacity, const i32* places
) {
    const u64 row = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const Out columns = {out, capacity, places};
    const i64 size = (i64)blob_bytes, begin = offsets[row], end = offsets[row + 1];
    Walk walk = {};
    walk.blob = blob;
    walk.row = row;
    walk.out = &columns;
    walk.start = walk.at = begin < size ? begin : size;
    walk.end = walk.at + (end - begin) < size ? walk.at + (end - begin) : size;
    walk.limit = walk.end;
    if (wire && walk.at + (i64)wire[row] > walk.end) walk.limit = walk.at + (i64)wire[row];
    walk.first = true;
    walk.plain.link = (u16)(links ? links[row] : common_link);
    walk.plain.vlan_outer = walk.plain.vlan_inner = NO_VLAN;
    walk.plain.mpls_label = NO_LABEL;
    walk.kind = after_link(walk.plain.link);
    if (walk.kind == Kind_DONE) walk.fail(Error_UNKNOWN_LINK);
    // A pass over a batch takes the kinds in the order of their numbers: a header of a lower one waits for the next.
    for (u32 pass = 0; walk.kind != Kind_DONE && pass < MAX_PASSES;) {
        const u32 read = walk.kind;
        walk.step();
        if (walk.kind < read || (walk.kind == read && !is_repeated(read))) {
            pass++;
            walk.first = false;
        }
    }
    walk.payload(walk.at, walk.end, walk.limit);
    store_plain(columns, row, walk.plain);
    if (!walk.split) store_header(columns, row, OUTER, walk.header);
    store_header(columns, row, INNER, walk.header);
}
