// Frames and columns: what docs/protocol.md says of them, as a caller and a handler need it.

import { decode, encode } from "@msgpack/msgpack";

export const VERSION = 1;

const ARRAYS = {
  bool: Uint8Array,
  i1: Int8Array,
  i2: Int16Array,
  i4: Int32Array,
  i8: BigInt64Array,
  u1: Uint8Array,
  u2: Uint16Array,
  u4: Uint32Array,
  u8: BigUint64Array,
  f4: Float32Array,
  f8: Float64Array,
};
const LONGEST_MESSAGE = 500; // characters of an error

/** An error of the bus, or of an agent: `code` is stable, the message says who must act. */
export class BusError extends Error {
  constructor(code, message, retryMs = 0) {
    super(message);
    this.name = "BusError";
    this.code = code;
    this.retryMs = retryMs;
  }
}

/** A column of rows: strings for utf8, Uint8Arrays for bin, else numbers, or arrays of them with the shape of a row. */
export function pack(type, rows, shape = []) {
  if (type === "utf8" || type === "bin") {
    const blobs = rows.map((row) => (type === "utf8" ? Buffer.from(row) : row));
    const ends = new Uint32Array(rows.length + 1);
    blobs.forEach((blob, row) => (ends[row + 1] = ends[row] + blob.length));
    return { t: type, o: bytesOf(ends), d: Buffer.concat(blobs) };
  }
  const values = arrayOf(type).from(rows.map((row) => (shape.length ? Array.from(row) : [row])).flat());
  return { t: type, s: [rows.length, ...shape], d: bytesOf(values) };
}

/** The rows of a column, as `pack` takes them; a row with a shape is one flat typed array. */
export function unpack(column, count) {
  if (column.t === "utf8" || column.t === "bin") {
    // Before anything of that length is made: the number of rows is somebody else's word.
    if (column.o?.length !== 4 * (count + 1)) throw new BusError("bad_column", `'o' has no ${count + 1} offsets`);
    const ends = new Uint32Array(aligned(column.o));
    if (ends.some((end, row) => end < (row ? ends[row - 1] : 0)) || ends[count] !== column.d?.length) {
      throw new BusError("bad_column", "offsets must rise from 0 to the length of the data");
    }
    const blobs = Array.from({ length: count }, (_, row) => column.d.subarray(ends[row], ends[row + 1]));
    return column.t === "bin" ? blobs : blobs.map((blob) => Buffer.from(blob).toString());
  }
  const array = arrayOf(column.t);
  const size = column.d?.length / array.BYTES_PER_ELEMENT / count;
  if (!Number.isInteger(size)) throw new BusError("bad_column", `the data is not of ${count} equal rows`);
  const values = new array(aligned(column.d));
  return Array.from({ length: count }, (_, row) => {
    if ((column.s ?? []).length > 1) return values.subarray(row * size, (row + 1) * size);
    return column.t === "bool" ? values[row] !== 0 : values[row];
  });
}

/** A frame as bytes; fields that are undefined are left out. */
export function encodeFrame(frame) {
  return encode(frame, { ignoreUndefined: true, useBigInt64: true });
}

/** A frame from bytes. A client's number may have 63 bits, so integers of 64 bits become BigInt. */
export function decodeFrame(payload) {
  try {
    const frame = decode(payload, { useBigInt64: true });
    if (typeof frame !== "object" || frame === null || Array.isArray(frame)) throw new TypeError("it is no map");
    return frame;
  } catch (error) {
    throw new BusError("bad_frame", `not a frame: ${error.message}`);
  }
}

/** A message of an agent: MessagePack, or JSON text where the column is utf8. */
export function decodeMessage(value) {
  try {
    return typeof value === "string" ? JSON.parse(value) : decode(value);
  } catch (error) {
    throw new BusError("bad_message", error.message);
  }
}

/** Whether a reply subject may be answered: who asks can name any subject. */
export function isInbox(subject, prefix) {
  return subject?.startsWith(`${prefix}.`) || subject?.startsWith(`${prefix}_`) || false;
}

/** An entry of `err`: why `count` rows from `row` on got no answer. */
export function rowError(error, row, count = 1) {
  return {
    row,
    n: count,
    code: error.code,
    msg: error.message.slice(0, LONGEST_MESSAGE),
    retry_ms: error.retryMs || undefined,
  };
}

function arrayOf(type) {
  const array = ARRAYS[type];
  if (!array) throw new BusError("bad_column", `type ${type}: this client knows utf8, bin, ${Object.keys(ARRAYS)}`);
  return array;
}

function bytesOf(array) {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}

/** The bytes in a buffer of their own: a typed array begins at a multiple of its item's size. */
function aligned(bytes) {
  return new Uint8Array(bytes).buffer;
}
