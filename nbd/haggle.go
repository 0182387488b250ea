package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// haggle negotiates up to the transmission phase. If the client leaves before
// that, the export stays nil, and no error is returned.
func (s *session) haggle(ctx context.Context) error {
	b := be.AppendUint64(nil, greetingMagic)
	b = be.AppendUint64(b, optionMagic)
	offer := uint16(flagFixedNewstyle)
	if s.profile.NoZeroes {
		offer |= flagNoZeroes
	}
	if _, err := s.conn.Write(be.AppendUint16(b, offer)); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	var answer [4]byte
	if _, err := io.ReadFull(s.conn, answer[:]); err != nil {
		return fmt.Errorf("client flags: %w", err)
	}
	flags := be.Uint32(answer[:])
	if flags&^uint32(offer) != 0 && !s.profile.LikeXAPI {
		return fmt.Errorf("%w: client flags %#x were not offered", ErrProtocol, flags)
	}
	if flags&flagFixedNewstyle == 0 && s.profile.ForceTLS {
		return fmt.Errorf("%w: client that cannot do starttls", ErrTLS)
	}
	s.noZeroes = s.profile.NoZeroes && flags&flagNoZeroes != 0
	for {
		option, data, err := s.option()
		if err != nil {
			return err
		}
		err = s.handle(ctx, option, data)
		if errors.Is(err, errLeft) {
			return nil
		}
		if err != nil || s.export != nil {
			return err
		}
	}
}

// option reads one option. It reads no byte beyond it, because TLS may begin
// there.
func (s *session) option() (uint32, []byte, error) {
	var head [optionHeaderSize]byte
	if _, err := io.ReadFull(s.conn, head[:]); err != nil {
		return 0, nil, fmt.Errorf("option: %w", err)
	}
	if be.Uint64(head[:]) != optionMagic {
		return 0, nil, fmt.Errorf("%w: option magic", ErrProtocol)
	}
	n := be.Uint32(head[12:])
	if n > maxOptionData {
		return 0, nil, fmt.Errorf("%w: option of %d bytes", ErrProtocol, n)
	}
	data := make([]byte, n)
	if _, err := io.ReadFull(s.conn, data); err != nil {
		return 0, nil, fmt.Errorf("option: %w", err)
	}
	return be.Uint32(head[8:]), data, nil
}

func (s *session) reply(option, kind uint32, data []byte) error {
	s.out = appendOptionReply(s.out[:0], option, kind, data)
	_, err := s.conn.Write(s.out)
	return err
}

func (s *session) secure() bool {
	_, ok := s.conn.(*tls.Conn)
	return ok
}

// handle answers one option. Afterwards the export is open if the transmission
// phase begins.
func (s *session) handle(ctx context.Context, option uint32, data []byte) error {
	p := &s.profile
	if p.ForceTLS && !s.secure() {
		switch {
		case option == optStartTLS:
		case option == optExportName:
			return fmt.Errorf("%w: export wanted without it", ErrTLS)
		case option == optAbort && p.LikeXAPI:
			return errLeft
		case option == optAbort:
		default:
			return s.reply(option, repErrTLSRequired, nil)
		}
	}
	switch option {
	case optExportName:
		return s.exportName(ctx, string(data))
	case optAbort:
		_ = s.reply(option, repAck, nil)
		return errLeft
	case optStartTLS:
		return s.startTLS(ctx, data)
	case optList:
		return s.list(ctx, data)
	case optGo:
		if p.GO {
			return s.infoOrGo(ctx, option, data)
		}
	case optInfo:
		if p.Info {
			return s.infoOrGo(ctx, option, data)
		}
	case optStructuredReply:
		if p.Structured {
			if len(data) != 0 {
				return s.reply(option, repErrInvalid, nil)
			}
			s.structured = true
			return s.reply(option, repAck, nil)
		}
	case optListMetaContext, optSetMetaContext:
		if p.BlockStatus {
			return s.metaContext(option, data)
		}
	}
	return s.reply(option, repErrUnsup, nil)
}

func (s *session) startTLS(ctx context.Context, data []byte) error {
	switch {
	case s.secure():
		return s.reply(optStartTLS, repErrInvalid, nil)
	case s.profile.TLS == nil && s.profile.LikeXAPI:
		return s.reply(optStartTLS, repErrPolicy, nil)
	case s.profile.TLS == nil:
		return s.reply(optStartTLS, repErrUnsup, nil)
	case len(data) != 0 && !s.profile.LikeXAPI:
		return s.reply(optStartTLS, repErrInvalid, nil)
	}
	if err := s.reply(optStartTLS, repAck, nil); err != nil {
		return err
	}
	conf := s.profile.TLS.Clone()
	conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
	// Bulk data from the first byte: small records would only cost time.
	conf.DynamicRecordSizingDisabled = true
	tc := tls.Server(s.conn, conf)
	if err := tc.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrTLS, err)
	}
	// Agreements made before TLS do not count.
	s.conn, s.structured, s.allocation = tc, false, false
	return nil
}

func (s *session) list(ctx context.Context, data []byte) error {
	if !s.profile.List || s.server.List == nil {
		return s.reply(optList, repErrPolicy, nil)
	}
	if len(data) != 0 {
		return s.reply(optList, repErrInvalid, nil)
	}
	all, err := s.server.List(ctx)
	if err != nil {
		return s.reply(optList, repErrPolicy, nil)
	}
	for _, e := range all {
		if len(e.Name) > maxString || len(e.Description) > maxString {
			continue
		}
		b := be.AppendUint32(nil, uint32(len(e.Name)))
		b = append(append(b, e.Name...), e.Description...)
		if err := s.reply(optList, repServer, b); err != nil {
			return err
		}
	}
	return s.reply(optList, repAck, nil)
}

func (s *session) open(ctx context.Context, name string) (Export, error) {
	e, err := s.server.Open(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return e, nil
}

func (s *session) transmissionFlags() uint16 {
	flags := uint16(txHasFlags | txReadOnly)
	if s.structured && !s.profile.LikeXAPI {
		flags |= txSendDF
	}
	if s.profile.MultiConn {
		flags |= txMultiConn
	}
	return flags
}

// exportName begins the transmission phase, or closes the connection.
func (s *session) exportName(ctx context.Context, name string) error {
	if len(name) > maxString {
		return fmt.Errorf("%w: export name of %d bytes", ErrProtocol, len(name))
	}
	e, err := s.open(ctx, name)
	if err != nil {
		return err
	}
	s.export, s.name = e, name
	b := be.AppendUint64(nil, uint64(e.Size()))
	b = be.AppendUint16(b, s.transmissionFlags())
	if !s.noZeroes {
		b = append(b, make([]byte, exportPadding)...)
	}
	_, err = s.conn.Write(b)
	return err
}

func (s *session) infoOrGo(ctx context.Context, option uint32, data []byte) error {
	g, err := parseGoRequest(data)
	if err != nil {
		return s.reply(option, repErrInvalid, nil)
	}
	e, err := s.open(ctx, g.name)
	if err != nil {
		if s.profile.LikeXAPI {
			return err
		}
		if errors.Is(err, fs.ErrNotExist) {
			return s.reply(option, repErrUnknown, nil)
		}
		return s.reply(option, repErrPolicy, nil)
	}
	// After GO, the export is closed when the session ends; after INFO, when
	// this function returns.
	if option == optGo {
		s.export, s.name = e, g.name
	} else if c, ok := e.(io.Closer); ok {
		defer c.Close()
	}
	b := be.AppendUint16(nil, infoExport)
	b = be.AppendUint64(b, uint64(e.Size()))
	b = be.AppendUint16(b, s.transmissionFlags())
	if err := s.reply(option, repInfo, b); err != nil {
		return err
	}
	if !s.profile.LikeXAPI {
		b = be.AppendUint16(nil, infoBlockSize)
		b = be.AppendUint32(b, 1)
		b = be.AppendUint32(b, 4096)
		b = be.AppendUint32(b, maxPayload)
		if err := s.reply(option, repInfo, b); err != nil {
			return err
		}
	}
	return s.reply(option, repAck, nil)
}

// metaContext lists or selects base:allocation. Names that do not exist are
// refused by GO, which follows.
func (s *session) metaContext(option uint32, data []byte) error {
	set := option == optSetMetaContext
	if set {
		s.allocation = false
	}
	m, err := parseMetaRequest(data)
	if err != nil || set && !s.structured {
		return s.reply(option, repErrInvalid, nil)
	}
	match := len(m.queries) == 0 && !set
	for _, q := range m.queries {
		if !strings.Contains(q, ":") {
			return s.reply(option, repErrInvalid, nil)
		}
		match = match || q == contextAllocation || q == "base:" && !set
	}
	if match {
		id := uint32(0)
		if set {
			s.allocation, s.metaName, id = true, m.name, allocationID
		}
		b := append(be.AppendUint32(nil, id), contextAllocation...)
		if err := s.reply(option, repMetaContext, b); err != nil {
			return err
		}
	}
	return s.reply(option, repAck, nil)
}
