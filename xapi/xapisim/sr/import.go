package sr

import "io"

// ImportVHD applies a VHD stream as vhd-tool does.
func (v *Volume) ImportVHD(r io.Reader, contentLength int64) error { return ErrIO }

// ImportRaw writes exactly length bytes from r to the volume's beginning.
func (v *Volume) ImportRaw(r io.Reader, length int64) error { return ErrIO }

// ImportChunked writes the chunks of XenServer's own framing.
func (v *Volume) ImportChunked(r io.Reader) error { return ErrIO }

// WriteImage makes the volume equal to the file at path.
func (v *Volume) WriteImage(path string) error { return ErrIO }
