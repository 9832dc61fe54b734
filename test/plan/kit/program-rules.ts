import { itemSize } from "../../../src/layout/index.ts";
import type { ProgramBucket, ProgramChannel, ReadProgram } from "./program-reader.ts";

function must(condition: boolean, program: ReadProgram, what: string): asserts condition {
  if (!condition) throw new Error(`the program of rank ${program.rank} breaks a rule: ${what}`);
}

/** Holds the rules of `docs/program-format.md` that span the tables of one program. */
export function checkProgram(program: ReadProgram): void {
  checkOrder(program);
  checkBuckets(program);
  checkFolds(program);
  checkPieces(program);
  checkStaging(program);
}

const directions = ["local", "send", "receive"];

function compare(a: readonly number[], b: readonly number[]): number {
  const at = a.findIndex((value, index) => value !== b[index]);
  return at < 0 ? 0 : a[at]! - b[at]!;
}

function checkOrder(program: ReadProgram): void {
  const ascends = (keys: readonly (readonly number[])[]): boolean =>
    keys.every((key, index) => index === 0 || compare(keys[index - 1]!, key) < 0);
  must(
    ascends(program.buffers.map(({ tensor, kind }) => [tensor, kind === "source" ? 0 : 1])),
    program,
    "buffers are not in order",
  );
  must(
    ascends(
      program.channels.map(({ wave, stage, direction, peer }) => [
        wave,
        stage,
        directions.indexOf(direction),
        peer,
      ]),
    ),
    program,
    "channels are not in order",
  );
}

/** Payload bytes from the chunks: each begins at a multiple of 16, none is padded at the end. */
function payloadBytes(bucket: ProgramBucket): number {
  let end = 0;
  for (const { elements, types } of bucket.chunks)
    end = Math.ceil(end / 16) * 16 + elements * itemSize(types.wire);
  return end;
}

function fingerprint(buckets: readonly ProgramBucket[]): bigint {
  let hash = 0xcbf29ce484222325n;
  const bytes = new DataView(new ArrayBuffer(16));
  for (const bucket of buckets) {
    bytes.setBigUint64(0, BigInt(bucket.bytes), true);
    bytes.setBigUint64(8, BigInt(bucket.chunks.length), true);
    for (let at = 0; at < 16; at++)
      hash = BigInt.asUintN(64, (hash ^ BigInt(bytes.getUint8(at))) * 0x100000001b3n);
  }
  return hash;
}

function checkBuckets(program: ReadProgram): void {
  const listed = program.channels.flatMap(({ buckets }) => buckets);
  must(
    listed.toSorted((a, b) => a - b).join() === program.buckets.map((_, index) => index).join(),
    program,
    "every bucket is in one channel",
  );
  program.channels.forEach((channel, number) => {
    const buckets = channel.buckets.map((index) => program.buckets[index]!);
    must(channel.buckets.length > 0, program, "a channel without buckets");
    must(
      (channel.direction === "local") === (channel.peer === program.rank),
      program,
      "the peer of a channel",
    );
    for (const bucket of buckets) {
      must(bucket.channel === number, program, "a bucket names its channel");
      must(bucket.chunks.length > 0, program, "a bucket without chunks");
      must(payloadBytes(bucket) === bucket.bytes, program, "the bytes of a bucket");
      must(bucket.bytes <= program.bucketBytes, program, "a bucket beyond bucketBytes");
      checkEnds(program, channel, bucket);
      for (const dependency of bucket.dependencies) {
        const earlier = program.buckets[dependency];
        must(earlier !== undefined, program, "a dependency that is not there");
        must(program.channels[earlier.channel]!.wave < channel.wave, program, "the wave of a dependency");
      }
    }
    must(
      channel.bytes === buckets.reduce((sum, { bytes }) => sum + bytes, 0),
      program,
      "the bytes of a channel",
    );
    must(channel.fingerprint === fingerprint(buckets), program, "the fingerprint of a channel");
  });
  const sent = program.channels.filter(({ direction }) => direction === "send");
  must(
    program.sentBytes === sent.reduce((sum, { bytes }) => sum + bytes, 0),
    program,
    "the bytes that it sends",
  );
}

function checkEnds(program: ReadProgram, { direction, stage }: ProgramChannel, bucket: ProgramBucket): void {
  for (const { source, destination, reduce, types, position } of bucket.chunks) {
    must((source.kind === "peer") === (direction === "receive"), program, "a source end that is the peer's");
    must(
      (destination.kind === "peer") === (direction === "send"),
      program,
      "a destination that is the peer's",
    );
    must(reduce === (stage === 0), program, "the operation of a chunk");
    must(reduce || position === 0, program, "the fold position of a copy");
    if (destination.kind !== "peer")
      must(
        (destination.kind === "piece") === reduce,
        program,
        "a reduce goes into a piece, and nothing else",
      );
    must(
      types.wire === types.source || types.wire === types.destination,
      program,
      "two casts of one element",
    );
    if (stage === 0)
      must(types.wire === types.source && types.wire === types.destination, program, "a cast in stage 0");
    const [from, wire, to] = [types.source, types.wire, types.destination].map(itemSize) as [
      number,
      number,
      number,
    ];
    if (stage === 1)
      must(
        from < to ? types.wire === types.source : types.wire === types.destination,
        program,
        "the wire type",
      );
    must(wire <= Math.max(from, to), program, "a wire type wider than both");
  }
}

interface Contribution {
  readonly position: number;
  readonly bucket: number;
  readonly tensor: number;
}

/** The contributions to each piece, in the order of their positions. */
function contributions(program: ReadProgram): Contribution[][] {
  const lists: Contribution[][] = program.pieces.map(() => []);
  program.buckets.forEach((bucket, index) => {
    for (const chunk of bucket.chunks) {
      if (chunk.reduce && chunk.destination.kind === "piece")
        lists[chunk.destination.piece]!.push({
          position: chunk.position,
          bucket: index,
          tensor: chunk.tensor,
        });
    }
  });
  return lists.map((list) => list.sort((a, b) => a.position - b.position));
}

/** Positions are 0, 1, 2, …; each bucket is folded right after the one before it, and the last completes. */
function checkFolds(program: ReadProgram): void {
  contributions(program).forEach((list, index) => {
    const piece = program.pieces[index]!;
    must(list.length === piece.contributions && list.length > 1, program, "the contributions of a piece");
    list.forEach(({ position, bucket, tensor }, at) => {
      const { foldAfter, completesFold } = program.buckets[bucket]!;
      must(position === at, program, "fold positions are 0, 1, 2, …");
      must(tensor === piece.tensor, program, "a contribution of another tensor than its piece");
      must(
        foldAfter === list[at - 1]?.bucket,
        program,
        "a bucket is folded after that of the position before it",
      );
      must(completesFold === (at === list.length - 1), program, "the last contribution completes the fold");
    });
  });
  for (const { foldAfter, completesFold, chunks } of program.buckets) {
    if (!chunks.some(({ reduce, destination }) => reduce && destination.kind === "piece"))
      must(foldAfter === undefined && !completesFold, program, "a bucket that folds nothing");
  }
}

function checkPieces(program: ReadProgram): void {
  const readers = program.pieces.map(() => 0);
  const folds = contributions(program);
  for (const bucket of program.buckets) {
    for (const { source, elements, types } of bucket.chunks) {
      if (source.kind !== "piece") continue;
      const piece = program.pieces[source.piece]!;
      must(elements === piece.elements && types.source === piece.dtype, program, "a read of a whole piece");
      must(
        bucket.dependencies.includes(folds[source.piece]!.at(-1)!.bucket),
        program,
        "a read waits for the bucket that completes the fold",
      );
      readers[source.piece]!++;
    }
  }
  program.pieces.forEach(({ elements, dtype, poolBytes, readers: announced }, index) => {
    const accumulator =
      dtype.startsWith("float") || dtype === "bfloat16" ? Math.max(4, itemSize(dtype)) : itemSize(dtype);
    must(poolBytes === Math.ceil((elements * accumulator) / 64) * 64, program, "the pool bytes of a piece");
    must(announced === readers[index] && announced > 0, program, "the readers of a piece");
  });
  const sizes = program.pieces.map(({ poolBytes }) => poolBytes);
  must(program.poolBytes >= Math.max(0, ...sizes), program, "a pool smaller than its largest piece");
  must(
    program.poolBytes <= 2 * sizes.reduce((a, b) => a + b, 0),
    program,
    "a pool larger than all pieces twice",
  );
}

function checkStaging(program: ReadProgram): void {
  const { bucketsInFlight, peersInFlight } = program;
  const announced = { send: program.sendStagingBytes, receive: program.receiveStagingBytes };
  for (const direction of ["send", "receive"] as const) {
    let bytes = 0;
    for (const stage of [0, 1, 2]) {
      const channels = program.channels.filter((c) => c.direction === direction && c.stage === stage);
      const slots = channels.reduce((sum, c) => sum + Math.min(bucketsInFlight, c.buckets.length), 0);
      const largest = Math.max(
        0,
        ...channels.flatMap((c) => c.buckets.map((index) => program.buckets[index]!.bytes)),
      );
      bytes += Math.min(peersInFlight * bucketsInFlight, slots) * largest;
    }
    must(
      announced[direction] === bytes,
      program,
      `${direction} staging is ${announced[direction]}, not ${bytes}`,
    );
  }
}
