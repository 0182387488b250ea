package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"

	"xenkeep/internal/disk"
)

// All integers on the wire are big-endian. Sizes and values are those of the
// NBD project's doc/proto.md.

// Constants of the handshake.
const (
	greetingMagic = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic   = 0x49484156454f5054 // "IHAVEOPT"
	replyMagic    = 0x0003e889045565a9

	greetingSize     = 18 // both magics, 16 bits of handshake flags
	optionHeaderSize = 16 // magic, option, length
	optionReplySize  = 20 // magic, option, reply type, length
	exportPadding    = 124

	flagFixedNewstyle = 1 << 0 // same bit in the server's and the client's flags
	flagNoZeroes      = 1 << 1

	// maxString is the protocol's limit for names and messages.
	maxString = 4096
	// maxOptionData bounds the data that either side accepts with an option or
	// its reply: two strings and some framing, with a margin.
	maxOptionData = 64 << 10
)

// Options.
const (
	optExportName      = 1
	optAbort           = 2
	optList            = 3
	optStartTLS        = 5
	optInfo            = 6
	optGo              = 7
	optStructuredReply = 8
	optListMetaContext = 9
	optSetMetaContext  = 10
)

// Option replies.
const (
	repAck         = 1
	repServer      = 2
	repInfo        = 3
	repMetaContext = 4

	repErrUnsup         = 1<<31 + 1
	repErrPolicy        = 1<<31 + 2
	repErrInvalid       = 1<<31 + 3
	repErrTLSRequired   = 1<<31 + 5
	repErrUnknown       = 1<<31 + 6
	repErrShutdown      = 1<<31 + 7
	repErrBlockSizeReqd = 1<<31 + 8
	repErrTooBig        = 1<<31 + 9

	repIsError = 1 << 31
)

// Information types of INFO and GO.
const (
	infoExport      = 0
	infoName        = 1
	infoDescription = 2
	infoBlockSize   = 3
)

// Transmission flags.
const (
	txHasFlags  = 1 << 0
	txReadOnly  = 1 << 1
	txSendDF    = 1 << 7
	txMultiConn = 1 << 8
)

// Constants of the transmission phase.
const (
	requestMagic    = 0x25609513
	simpleMagic     = 0x67446698
	structuredMagic = 0x668e33ef

	requestSize    = 28
	simpleSize     = 16
	structuredSize = 20

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdCache       = 5
	cmdWriteZeroes = 6
	cmdBlockStatus = 7

	cmdFlagDF     = 1 << 2
	cmdFlagReqOne = 1 << 3

	chunkDone = 1 << 0

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkBlockStatus = 5
	chunkError       = 1<<15 + 1
	chunkErrorOffset = 1<<15 + 2
	chunkIsError     = 1 << 15

	// maxPayload is the largest read that every peer must accept, and the
	// largest that this package requests or serves.
	maxPayload = 32 << 20
	// maxStatusPayload is the protocol's recommended limit for a block status
	// chunk: one context ID and 2^20 descriptors.
	maxStatusPayload = 4 + 8<<20
)

// contextAllocation is the only metadata context that this package supports.
const contextAllocation = "base:allocation"

// Flags of a base:allocation descriptor.
const (
	stateHole = 1 << 0
	stateZero = 1 << 1
)

// Errno is an error value of the protocol.
type Errno uint32

// The error values of the protocol.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

func (e Errno) Error() string {
	switch e {
	case EPERM:
		return "EPERM"
	case EIO:
		return "EIO"
	case ENOMEM:
		return "ENOMEM"
	case EINVAL:
		return "EINVAL"
	case ENOSPC:
		return "ENOSPC"
	case EOVERFLOW:
		return "EOVERFLOW"
	case ENOTSUP:
		return "ENOTSUP"
	case ESHUTDOWN:
		return "ESHUTDOWN"
	}
	return fmt.Sprintf("error %d", uint32(e))
}

// Extent is a byte range of an export with its allocation. A hole is not
// allocated at the server; zero means that it reads as zeros. If neither is
// set, the range must be read.
type Extent struct {
	disk.Extent
	Hole, Zero bool
}

// errMalformed is the cause of every decoder's error.
var errMalformed = errors.New("malformed message")

// be is the byte order of the wire.
var be = binary.BigEndian

// request is one command of the transmission phase.
type request struct {
	flags, command uint16
	cookie         uint64
	offset         uint64
	length         uint32
}

func (r *request) put(b []byte) {
	be.PutUint32(b, requestMagic)
	be.PutUint16(b[4:], r.flags)
	be.PutUint16(b[6:], r.command)
	be.PutUint64(b[8:], r.cookie)
	be.PutUint64(b[16:], r.offset)
	be.PutUint32(b[24:], r.length)
}

// parseRequest decodes the requestSize bytes of b.
func parseRequest(b []byte) (request, error) {
	if len(b) < requestSize || be.Uint32(b) != requestMagic {
		return request{}, fmt.Errorf("%w: request magic", errMalformed)
	}
	return request{
		flags:   be.Uint16(b[4:]),
		command: be.Uint16(b[6:]),
		cookie:  be.Uint64(b[8:]),
		offset:  be.Uint64(b[16:]),
		length:  be.Uint32(b[24:]),
	}, nil
}

func putSimple(b []byte, errno Errno, cookie uint64) {
	be.PutUint32(b, simpleMagic)
	be.PutUint32(b[4:], uint32(errno))
	be.PutUint64(b[8:], cookie)
}

// chunk is the header of one piece of a structured reply.
type chunk struct {
	flags, kind uint16
	cookie      uint64
	length      uint32 // of the payload
}

func (c *chunk) put(b []byte) {
	be.PutUint32(b, structuredMagic)
	be.PutUint16(b[4:], c.flags)
	be.PutUint16(b[6:], c.kind)
	be.PutUint64(b[8:], c.cookie)
	be.PutUint32(b[16:], c.length)
}

func parseChunk(b []byte) (chunk, error) {
	if len(b) < structuredSize || be.Uint32(b) != structuredMagic {
		return chunk{}, fmt.Errorf("%w: structured reply magic", errMalformed)
	}
	return chunk{
		flags:  be.Uint16(b[4:]),
		kind:   be.Uint16(b[6:]),
		cookie: be.Uint64(b[8:]),
		length: be.Uint32(b[16:]),
	}, nil
}

// appendOption appends an option and its data in the form that a client sends.
func appendOption(b []byte, option uint32, data []byte) []byte {
	b = be.AppendUint64(b, optionMagic)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// appendOptionReply appends a server's reply to an option.
func appendOptionReply(b []byte, option, kind uint32, data []byte) []byte {
	b = be.AppendUint64(b, replyMagic)
	b = be.AppendUint32(b, option)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// cutString removes a string with a 32-bit length prefix from the start of b.
func cutString(b []byte) (s string, rest []byte, err error) {
	if len(b) < 4 {
		return "", nil, fmt.Errorf("%w: string cut short", errMalformed)
	}
	n := be.Uint32(b)
	b = b[4:]
	if n > maxString || uint64(n) > uint64(len(b)) {
		return "", nil, fmt.Errorf("%w: string of %d bytes", errMalformed, n)
	}
	return string(b[:n]), b[n:], nil
}

// goRequest is the data of INFO and GO.
type goRequest struct {
	name  string
	infos []uint16
}

func (g *goRequest) append(b []byte) []byte {
	b = be.AppendUint32(b, uint32(len(g.name)))
	b = append(b, g.name...)
	b = be.AppendUint16(b, uint16(len(g.infos)))
	for _, i := range g.infos {
		b = be.AppendUint16(b, i)
	}
	return b
}

func parseGoRequest(b []byte) (goRequest, error) {
	name, b, err := cutString(b)
	if err != nil {
		return goRequest{}, err
	}
	if len(b) < 2 || len(b) != 2+2*int(be.Uint16(b)) {
		return goRequest{}, fmt.Errorf("%w: information requests", errMalformed)
	}
	g := goRequest{name: name}
	for b = b[2:]; len(b) > 0; b = b[2:] {
		g.infos = append(g.infos, be.Uint16(b))
	}
	return g, nil
}

// metaRequest is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
type metaRequest struct {
	name    string
	queries []string
}

func (m *metaRequest) append(b []byte) []byte {
	b = be.AppendUint32(b, uint32(len(m.name)))
	b = append(b, m.name...)
	b = be.AppendUint32(b, uint32(len(m.queries)))
	for _, q := range m.queries {
		b = be.AppendUint32(b, uint32(len(q)))
		b = append(b, q...)
	}
	return b
}

func parseMetaRequest(b []byte) (metaRequest, error) {
	name, b, err := cutString(b)
	if err != nil {
		return metaRequest{}, err
	}
	if len(b) < 4 {
		return metaRequest{}, fmt.Errorf("%w: metadata queries", errMalformed)
	}
	n := be.Uint32(b)
	b = b[4:]
	m := metaRequest{name: name}
	for ; n > 0; n-- {
		var q string
		if q, b, err = cutString(b); err != nil {
			return metaRequest{}, err
		}
		m.queries = append(m.queries, q)
	}
	if len(b) != 0 {
		return metaRequest{}, fmt.Errorf("%w: bytes after the metadata queries", errMalformed)
	}
	return m, nil
}

// parseStatus appends the descriptors of a block status chunk's payload,
// without the context ID, to ext. They begin at off; it cuts off the part
// beyond limit, because a server may describe more than the requested range.
func parseStatus(ext []Extent, b []byte, off, limit int64) ([]Extent, error) {
	if len(b) == 0 || len(b)%8 != 0 {
		return ext, fmt.Errorf("%w: block status of %d bytes", errMalformed, len(b))
	}
	for ; len(b) > 0; b = b[8:] {
		n, flags := int64(be.Uint32(b)), be.Uint32(b[4:])
		if n == 0 {
			return ext, fmt.Errorf("%w: empty extent", errMalformed)
		}
		if off >= limit {
			return ext, fmt.Errorf("%w: extents beyond the requested range", errMalformed)
		}
		n = min(n, limit-off)
		e := Extent{disk.Extent{Offset: off, Length: n}, flags&stateHole != 0, flags&stateZero != 0}
		ext = appendExtent(ext, e)
		off += n
	}
	return ext, nil
}

// appendExtent appends e, merged with the last one if both have the same flags.
func appendExtent(ext []Extent, e Extent) []Extent {
	if k := len(ext) - 1; k >= 0 && ext[k].End() == e.Offset && ext[k].Hole == e.Hole && ext[k].Zero == e.Zero {
		ext[k].Length += e.Length
		return ext
	}
	return append(ext, e)
}

// parseErrorChunk decodes the payload of an error chunk.
func parseErrorChunk(kind uint16, b []byte) (Errno, string, error) {
	tail := 0
	if kind == chunkErrorOffset {
		tail = 8
	}
	if len(b) < 6+tail {
		return 0, "", fmt.Errorf("%w: error chunk of %d bytes", errMalformed, len(b))
	}
	errno, n := Errno(be.Uint32(b)), int(be.Uint16(b[4:]))
	if errno == 0 || n > maxString || n > len(b)-6-tail {
		return 0, "", fmt.Errorf("%w: error chunk", errMalformed)
	}
	return errno, string(b[6 : 6+n]), nil
}
