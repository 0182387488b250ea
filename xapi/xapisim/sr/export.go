package sr

import "io"

// Export is a volume's data on their way out, as the export tool sends them.
type Export struct {
}

// Export prepares a stream in format "vhd" or "raw"; with a base, the
// difference to it.
func (v *Volume) Export(format string, base *Volume) (*Export, error) { return nil, ErrIO }

// Length is the stream's length in bytes.
func (e *Export) Length() int64 { return 0 }

// WriteTo sends the stream.
func (e *Export) WriteTo(w io.Writer) (int64, error) { return 0, ErrIO }

// Close lets go of the layers.
func (e *Export) Close() error { return nil }
