//go:build !cgo

package seal

import "github.com/klauspost/compress/zstd"

// Encoder names the implementation of zstd that compresses.
const Encoder = "go"

var goLevels = [...]zstd.EncoderLevel{
	LevelFastest: zstd.SpeedFastest, LevelDefault: zstd.SpeedDefault,
	LevelBetter: zstd.SpeedBetterCompression, LevelBest: zstd.SpeedBestCompression,
}

// window is how far back a match may lie, in bytes: what is compressed as one
// is rarely larger.
const window = 1 << 20

// encoder is what a build without a C compiler has.
type encoder struct{ whole, fast *zstd.Encoder }

func newEncoder(l Level) (encoder, error) {
	// Entropy coding of literals without matches: 0.3 % less on system disks
	// for 1 % more time.
	whole, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(goLevels[l]), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(window), zstd.WithLowerEncoderMem(true), zstd.WithAllLitEntropyCompression(true))
	if err != nil {
		return encoder{}, err
	}
	fast, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithWindowSize(probeSize), zstd.WithLowerEncoderMem(true))
	return encoder{whole: whole, fast: fast}, err
}

// encode returns p compressed, in dst where it has room, or nil where that
// fails.
func (e encoder) encode(dst, p []byte) []byte { return e.whole.EncodeAll(p, dst[:0]) }

// encodeFast does it at the lowest level.
func (e encoder) encodeFast(dst, p []byte) []byte { return e.fast.EncodeAll(p, dst[:0]) }
