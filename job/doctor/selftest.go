package doctor

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"xenkeep/internal/disk"
	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/job/transfer"
	"xenkeep/nbd"
	"xenkeep/vhd"
	"xenkeep/xapi"
)

// ErrSelfTest is returned by SelfTest if a step failed.
var ErrSelfTest = errors.New("self-test failed")

// States of a step of a self-test.
const (
	StepOK      = "ok"
	StepFailed  = "failed"
	StepStopped = "stopped" // the test was interrupted
	StepSkipped = "skipped" // the pool or the SR does not offer it, or an earlier step failed
)

// SelfTestOptions are the options of SelfTest.
type SelfTestOptions struct {
	SR      string // name or UUID
	Size    int64  // of the test disk, bytes; 0: 100 MiB
	Machine string // name of this machine; "" is the host's
	Step    func(SelfTestStep)
	Now     func() time.Time // nil: time.Now
}

// SelfTestReport is the result of a self-test. It can be shown to others: it
// holds no name, address or credential of the pool. Its JSON form is documented
// in docs/reference/json.md.
type SelfTestReport struct {
	Type     string         `json:"type"`   // "selftest"
	Status   string         `json:"status"` // "ok", "failed" or "stopped"
	Product  string         `json:"product"`
	API      string         `json:"api"` // version of the pool's API
	Hosts    int            `json:"hosts"`
	SRType   string         `json:"sr_type"`
	Size     int64          `json:"size"`
	Steps    []SelfTestStep `json:"steps"`
	Left     []string       `json:"left,omitempty"` // UUIDs of disks that could not be removed
	Duration float64        `json:"seconds"`
}

// SelfTestStep is one step of a self-test.
type SelfTestStep struct {
	Name     string  `json:"name"`
	State    string  `json:"state"`
	Text     string  `json:"text,omitempty"` // the result, or why the step failed or was skipped
	Bytes    int64   `json:"bytes"`          // that were transferred
	Duration float64 `json:"seconds"`
}

// Rate returns the transfer rate of a step in bytes per second; 0 if nothing was
// transferred.
func (s SelfTestStep) Rate() float64 {
	if s.Duration <= 0 {
		return 0
	}
	return float64(s.Bytes) / s.Duration
}

// SelfTest tries each way in which xenkeep reads and writes a disk on one SR of a
// pool: it creates a disk, writes a pattern, takes VDI snapshots, reads them by each
// transport that the pool offers, and compares every byte. It touches no other object
// of the pool and removes its own, also after an error and when ctx is cancelled. The
// leftovers of a killed self-test are removed by the next one and by lease.Cleanup.
func SelfTest(ctx context.Context, pool *xapi.Client, o SelfTestOptions) (*SelfTestReport, error) {
	o.Size = cmp.Or(o.Size, 100<<20)
	if o.Machine == "" {
		o.Machine = job.Hostname()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &selfTest{pool: pool, o: o, began: o.Now(), rep: &SelfTestReport{Type: "selftest", Status: StepOK, Size: o.Size, Steps: []SelfTestStep{}}}
	err := s.prepare(ctx)
	if err != nil {
		return nil, err
	}
	stop := s.lease.Start(ctx, func(error) {}) // a missed renewal has no effect within an hour
	s.run(ctx)
	stop()
	removed := s.remove(ctx)
	s.rep.Duration = s.o.Now().Sub(s.began).Seconds()
	if removed && ctx.Err() != nil {
		s.rep.Status = StepStopped
		return s.rep, context.Cause(ctx)
	}
	if s.failed {
		s.rep.Status = StepFailed
		return s.rep, ErrSelfTest
	}
	return s.rep, nil
}

type selfTest struct {
	pool   *xapi.Client
	o      SelfTestOptions
	began  time.Time
	rep    *SelfTestReport
	lease  *lease.Lease
	sr     xapi.SR
	hide   []string // names and addresses that the report must not show
	failed bool

	disk          xapi.VDI
	first, second xapi.VDI // VDI snapshots
	tracked       bool
	listed        []byte // bitmap of changes between the snapshots
}

// prepare checks the requirements, removes the leftovers of earlier self-tests, and
// collects the facts of the report. It creates nothing.
func (s *selfTest) prepare(ctx context.Context) (err error) {
	if s.o.Size%disk.BlockSize != 0 || s.o.Size < 16*disk.BlockSize {
		return fmt.Errorf("a self-test's disk has at least %s, in steps of 2 MiB", humanize.IBytes(16*disk.BlockSize))
	}
	if s.sr, err = s.pool.FindSR(ctx, s.o.SR); err != nil {
		return err
	}
	s.rep.SRType = s.sr.Type
	reach, err := s.pool.HostsFor(ctx, s.sr.Ref)
	if err != nil {
		return err
	}
	free := int64(s.sr.PhysicalSize - s.sr.PhysicalUtilisation)
	switch {
	case s.sr.ContentType == "iso" || s.sr.Type == "udev" || s.sr.IsToolsSR:
		return fmt.Errorf("SR %s holds no disks of VMs: %w", s.sr.NameLabel, job.ErrUnsupported)
	case len(reach) == 0:
		return fmt.Errorf("no live host reaches SR %s", s.sr.NameLabel)
	case free < 4*s.o.Size:
		return fmt.Errorf("SR %s has %s free, a self-test wants %s: %w", s.sr.NameLabel, humanize.IBytes(uint64(max(free, 0))), humanize.IBytes(uint64(4*s.o.Size)), job.ErrSpace)
	}
	hosts, err := s.pool.Hosts(ctx)
	if err != nil {
		return err
	}
	s.rep.Hosts = len(hosts)
	for _, h := range hosts {
		if s.rep.Product == "" {
			s.rep.Product = strings.TrimSpace(h.SoftwareVersion["product_brand"] + " " + h.SoftwareVersion["product_version"])
			s.rep.API = fmt.Sprintf("%d.%d", h.APIVersionMajor, h.APIVersionMinor)
		}
		s.hide = append(s.hide, h.Address, h.Hostname, h.NameLabel)
	}
	s.hide = append(s.hide, s.pool.Master(), s.sr.NameLabel)
	s.hide = slices.DeleteFunc(s.hide, func(t string) bool { return len(t) < 3 })
	slices.SortFunc(s.hide, func(a, b string) int { return len(b) - len(a) })
	s.lease, err = lease.New(ctx, s.pool, lease.Owner{Repository: lease.SelfTestOwner, Run: lease.NewRunID(), Job: "doctor", Machine: s.o.Machine, Now: s.o.Now})
	if err != nil {
		return err
	}
	if err := s.removeDead(ctx); err != nil {
		return fmt.Errorf("remove the leftovers of an earlier self-test: %w", err)
	}
	return nil
}

// run executes the steps. A step that needs a failed one is skipped, and so are all
// steps after ctx is done.
func (s *selfTest) run(ctx context.Context) {
	if !s.step(ctx, "create a disk", s.create) {
		return
	}
	vhdBack := s.sr.StoresVHD(s.disk)
	s.step(ctx, "track its changes", s.track)
	write := s.importRaw
	if vhdBack {
		write = s.importVHD
	}
	if !s.step(ctx, "write by import", write) || !s.step(ctx, "take a VDI snapshot", func(ctx context.Context) (int64, string, error) { return s.snapshot(ctx, &s.first) }) {
		return
	}
	s.step(ctx, "read by VHD export", func(ctx context.Context) (int64, string, error) {
		return s.export(ctx, s.first, xapi.FormatVHD, "", 1)
	})
	s.step(ctx, "read by raw export", func(ctx context.Context) (int64, string, error) {
		return s.export(ctx, s.first, xapi.FormatRaw, "", 1)
	})
	if !s.step(ctx, "write over it in pieces", s.change) ||
		!s.step(ctx, "take a second VDI snapshot", func(ctx context.Context) (int64, string, error) { return s.snapshot(ctx, &s.second) }) {
		return
	}
	if vhdBack {
		s.step(ctx, "read by VHD delta", func(ctx context.Context) (int64, string, error) {
			return s.export(ctx, s.second, xapi.FormatVHD, s.first.Ref, 2)
		})
	} else {
		s.skip("read by VHD delta", "the SR does not keep its disks as VHDs")
	}
	s.step(ctx, "read over NBD", func(ctx context.Context) (int64, string, error) {
		return s.readNBD(ctx, []disk.Extent{{Offset: 0, Length: s.o.Size}})
	})
	if !s.tracked {
		s.skip("list changed blocks", "changes are not tracked")
		return
	}
	if s.step(ctx, "list changed blocks", s.list) {
		s.step(ctx, "read changed blocks over NBD", s.readChanged)
		s.step(ctx, "keep the list without the data", s.keepList)
	}
}

// errSkip makes step report a step as skipped.
type errSkip struct{ why string }

func (e *errSkip) Error() string { return e.why }

// step executes one step and records it. It reports whether the step succeeded.
func (s *selfTest) step(ctx context.Context, name string, fn func(ctx context.Context) (n int64, text string, err error)) bool {
	if ctx.Err() != nil {
		return false
	}
	began := s.o.Now()
	n, text, err := fn(ctx)
	st := SelfTestStep{Name: name, State: StepOK, Text: text, Bytes: n, Duration: s.o.Now().Sub(began).Seconds()}
	var skip *errSkip
	switch {
	case errors.As(err, &skip):
		st.State, st.Text, st.Bytes = StepSkipped, skip.why, 0
	case err != nil && ctx.Err() != nil:
		st.State, st.Text = StepStopped, ""
	case err != nil:
		st.State, st.Text = StepFailed, s.redact(job.OneLine(err))
		s.failed = true
	}
	s.record(st)
	return err == nil
}

func (s *selfTest) skip(name, why string) {
	s.record(SelfTestStep{Name: name, State: StepSkipped, Text: why})
}

func (s *selfTest) record(st SelfTestStep) {
	s.rep.Steps = append(s.rep.Steps, st)
	if s.o.Step != nil {
		s.o.Step(st)
	}
}

// redact removes names and addresses of the pool from an error's text.
func (s *selfTest) redact(text string) string {
	for _, t := range s.hide {
		text = strings.ReplaceAll(text, t, "(hidden)")
	}
	return references.ReplaceAllString(text, "(reference)")
}

var references = regexp.MustCompile(`OpaqueRef:[0-9A-Za-z-]+`)

func (s *selfTest) create(ctx context.Context) (int64, string, error) {
	// The disk is created with its marks, so that it can be recognized at any time.
	ref, err := s.pool.CreateVDI(ctx, xapi.VDIFields{
		Name: lease.SelfTestName, Description: "created by xenkeep doctor --self-test, which removes it", SR: s.sr.Ref, Size: s.o.Size,
		OtherConfig: s.lease.Marks(lease.RoleSelfTest),
	})
	if err != nil {
		return 0, "", err
	}
	s.lease.Renew("VDI", ref)
	if s.disk, err = s.pool.VDI(ctx, ref); err != nil {
		return 0, "", err
	}
	if int64(s.disk.VirtualSize) < s.o.Size {
		return 0, "", fmt.Errorf("the disk has %d bytes, %d were asked for", s.disk.VirtualSize, s.o.Size)
	}
	s.o.Size = int64(s.disk.VirtualSize)
	return 0, humanize.IBytes(uint64(s.o.Size)), nil
}

func (s *selfTest) track(ctx context.Context) (int64, string, error) {
	sms, err := s.pool.SMs(ctx)
	if err != nil {
		return 0, "", err
	}
	can := false
	for _, m := range sms {
		_, feature := m.Features["VDI_CONFIG_CBT"]
		can = can || m.Type == s.sr.Type && (feature || slices.Contains(m.Capabilities, "VDI_CONFIG_CBT"))
	}
	if !can || !s.sr.StoresVHD(s.disk) {
		return 0, "", &errSkip{"the SR does not track changes"}
	}
	err = s.pool.EnableCBT(ctx, s.disk.Ref)
	if xapi.IsCode(err, "LICENCE_RESTRICTION") {
		return 0, "", &errSkip{"the pool's licence does not include changed-block tracking"}
	}
	s.tracked = err == nil
	return 0, "", err
}

// The pattern: of every three blocks of 2 MiB one is full of random bytes, one
// is half full, and one is empty. The second version changes some of each, among
// them the last block, and one becomes empty.

// block returns the content of a block in a version of the disk; the last block may be
// short.
func (s *selfTest) block(version int, i int64) []byte {
	p := make([]byte, min(disk.BlockSize, s.o.Size-i*disk.BlockSize))
	seed := i
	if version == 2 && s.changes(i) {
		if i == 6 {
			return p
		}
		seed += 1 << 32
	}
	n := len(p)
	switch {
	case seed >= 1<<32 || i%3 == 0:
	case i%3 == 1:
		n /= 2
	default:
		n = 0
	}
	_, _ = pattern(seed).Read(p[:n])
	return p
}

// changes reports whether a block differs between the versions.
func (s *selfTest) changes(i int64) bool {
	return i == 1 || i == 2 || i == 6 || i == 9 || i == disk.Blocks(s.o.Size)-1
}

func pattern(seed int64) *mathrand.ChaCha8 {
	var key [32]byte
	copy(key[:], fmt.Sprintf("xenkeep self-test %d", seed))
	return mathrand.NewChaCha8(key)
}

func (s *selfTest) importVHD(ctx context.Context) (n int64, text string, err error) {
	layout := vhd.Layout{Profile: vhd.ForXenServer, Size: s.o.Size, Present: func(b int64) bool { return b%3 != 2 }, Time: vhd.Time(s.o.Now())}
	if layout.ID, err = vhd.NewUUID(rand.Reader); err != nil {
		return 0, "", err
	}
	err = s.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: s.disk.Ref, Format: xapi.FormatVHD, ContentLength: layout.Length()}, func(w io.Writer) error {
		vw, err := vhd.NewWriter(w, layout)
		if err != nil {
			return err
		}
		for i := range disk.Blocks(s.o.Size) {
			if !layout.Present(i) {
				continue
			}
			p := s.block(1, i)
			if err := vw.WriteAt(ctx, p, i*disk.BlockSize); err != nil {
				return err
			}
			n += int64(len(p))
		}
		return vw.Close()
	})
	return n, "as VHD", err
}

// importRaw writes the whole disk in pieces, empty blocks as zeros, because a raw
// volume may contain anything.
func (s *selfTest) importRaw(ctx context.Context) (int64, string, error) {
	n, err := s.pieces(ctx, 1, func(int64) bool { return true })
	return n, "in pieces", err
}

func (s *selfTest) change(ctx context.Context) (int64, string, error) {
	n, err := s.pieces(ctx, 2, s.changes)
	return n, "", err
}

func (s *selfTest) pieces(ctx context.Context, version int, wanted func(int64) bool) (n int64, err error) {
	if _, err := s.pool.WaitReleased(ctx, s.disk.Ref); err != nil {
		return 0, err
	}
	err = s.pool.ImportVDI(ctx, xapi.ImportOptions{VDI: s.disk.Ref, Format: xapi.FormatRaw, Chunked: true, ContentLength: -1}, func(w io.Writer) error {
		sink := &transfer.PieceSink{W: w}
		for i := range disk.Blocks(s.o.Size) {
			if !wanted(i) {
				continue
			}
			p := s.block(version, i)
			if err := sink.WriteAt(ctx, p, i*disk.BlockSize); err != nil {
				return err
			}
			n += int64(len(p))
		}
		return sink.End()
	})
	return n, err
}

func (s *selfTest) snapshot(ctx context.Context, out *xapi.VDI) (int64, string, error) {
	ref, err := s.pool.SnapshotVDI(ctx, s.disk.Ref)
	if err != nil {
		return 0, "", err
	}
	s.lease.Renew("VDI", ref) // it inherited the marks of its disk
	*out, err = s.pool.VDI(ctx, ref)
	return 0, "", err
}

// export reads a snapshot of the disk in a version and compares it. With a base
// it is a delta to version 1.
func (s *selfTest) export(ctx context.Context, vdi xapi.VDI, format string, base xapi.Ref, version int) (n int64, text string, err error) {
	e, err := s.pool.ExportVDI(ctx, xapi.ExportOptions{VDI: vdi.Ref, Format: format, Base: base})
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, e.Close(ctx)) }()
	var src disk.Source = &transfer.RawStream{R: e, Bytes: s.o.Size}
	if format == xapi.FormatVHD {
		if src, err = vhd.NewReader(e, vhd.Options{}); err != nil {
			return 0, "", transfer.PoolError(err)
		}
	}
	n, err = s.compare(ctx, &transfer.ExportSource{Source: src, E: e}, version, !base.IsNull() && base != "")
	return n, "every byte is equal", err
}

// compare reads src and compares it with a version of the disk. Ranges that src
// leaves out must be empty, or as in version 1 if it is a delta.
func (s *selfTest) compare(ctx context.Context, src disk.Source, version int, delta bool) (n int64, err error) {
	buf := make([]byte, disk.BlockSize)
	next := int64(0) // everything before has been compared
	gap := func(to int64) error {
		for next < to {
			i, off := next/disk.BlockSize, next%disk.BlockSize
			end := min(to, (i+1)*disk.BlockSize)
			have := make([]byte, disk.BlockSize)
			if delta {
				have = s.block(1, i)
			}
			if err := differ(s.block(version, i)[off:off+end-next], have[off:off+end-next], next); err != nil {
				return err
			}
			next = end
		}
		return nil
	}
	for {
		e, err := src.Next(ctx, buf)
		if err == io.EOF {
			return n, gap(s.o.Size)
		}
		if err != nil {
			return n, err
		}
		if e.Offset < next || e.End() > s.o.Size || e.Offset/disk.BlockSize != (e.End()-1)/disk.BlockSize {
			return n, fmt.Errorf("bytes %d to %d come after byte %d of a disk of %d", e.Offset, e.End(), next, s.o.Size)
		}
		if err := gap(e.Offset); err != nil {
			return n, err
		}
		off := e.Offset % disk.BlockSize
		if err := differ(s.block(version, e.Offset/disk.BlockSize)[off:off+e.Length], buf[:e.Length], e.Offset); err != nil {
			return n, err
		}
		n, next = n+e.Length, e.End()
	}
}

// differ returns an error that names the first byte in which have differs.
func differ(want, have []byte, at int64) error {
	if bytes.Equal(want, have) {
		return nil
	}
	i := 0
	for want[i] == have[i] {
		i++
	}
	return fmt.Errorf("byte %d reads as %02x, %02x was written", at+int64(i), have[i], want[i])
}

func (s *selfTest) readNBD(ctx context.Context, want []disk.Extent) (n int64, text string, err error) {
	infos, err := s.pool.NBDInfo(ctx, s.second.Ref)
	if err != nil {
		return 0, "", err
	}
	if len(infos) == 0 {
		return 0, "", &errSkip{"no network of the pool serves NBD to this SR"}
	}
	d, err := transfer.OpenVDI(ctx, s.pool, s.second, nbd.DiskOptions{})
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	src, err := d.Source(want, 0)
	if err != nil {
		return 0, "", err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	n, err = s.compare(ctx, src, 2, len(want) != 1 || want[0].Length != s.o.Size)
	return n, "every byte is equal", err
}

// list requests the changed blocks. A list of more blocks than were written is right,
// because drivers count in larger units; fewer is wrong.
func (s *selfTest) list(ctx context.Context) (int64, string, error) {
	// The pool refuses to compare a snapshot that a host still holds after a read.
	for _, ref := range []xapi.Ref{s.first.Ref, s.second.Ref} {
		if _, err := s.pool.WaitReleased(ctx, ref); err != nil {
			return 0, "", err
		}
	}
	bitmap, err := s.pool.ChangedBlocks(ctx, s.first.Ref, s.second.Ref)
	if err != nil {
		return 0, "", err
	}
	changed, err := transfer.ChangedExtents(bitmap, s.o.Size)
	if err != nil {
		return 0, "", err
	}
	var all int64
	for _, e := range changed {
		all += e.Length
	}
	for i := range disk.Blocks(s.o.Size) {
		end := min((i+1)*disk.BlockSize, s.o.Size)
		covered := slices.ContainsFunc(changed, func(e disk.Extent) bool { return e.Offset <= i*disk.BlockSize && e.End() >= end })
		if s.changes(i) && !covered {
			return 0, "", fmt.Errorf("the list of changes misses bytes %d to %d, which were written", i*disk.BlockSize, end)
		}
	}
	s.listed = bitmap
	return 0, humanize.IBytes(uint64(all)) + " changed", nil
}

func (s *selfTest) readChanged(ctx context.Context) (int64, string, error) {
	changed, err := transfer.ChangedExtents(s.listed, s.o.Size)
	if err != nil {
		return 0, "", err
	}
	return s.readNBD(ctx, changed)
}

// keepList destroys the data of the first snapshot, as a backup does, and requests the
// changes again.
func (s *selfTest) keepList(ctx context.Context) (int64, string, error) {
	if err := s.pool.DestroyData(ctx, s.first.Ref); err != nil {
		return 0, "", err
	}
	if _, err := s.pool.WaitReleased(ctx, s.second.Ref); err != nil {
		return 0, "", err
	}
	bitmap, err := s.pool.ChangedBlocks(ctx, s.first.Ref, s.second.Ref)
	if err == nil && !bytes.Equal(bitmap, s.listed) {
		err = errors.New("the list of changes is another one without the data")
	}
	return 0, "", err
}

// remove destroys everything that has this run's mark, also after ctx is done. It
// reports whether nothing is left.
func (s *selfTest) remove(ctx context.Context) bool {
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), job.CleanupTime)
	defer cancel()
	began := s.o.Now()
	own := func(m *lease.Marks) bool { return m.Run == s.lease.Own[lease.MarkRun] }
	n, left, err := s.destroy(clean, own)
	st := SelfTestStep{Name: "remove everything", State: StepOK, Text: fmt.Sprintf("%d disks and VDI snapshots", n), Duration: s.o.Now().Sub(began).Seconds()}
	if err != nil {
		st.State, st.Text = StepFailed, s.redact(job.OneLine(err))+"; xenkeep cleanup and the next self-test try again"
		s.failed, s.rep.Left = true, left
	}
	s.record(st)
	return err == nil
}

// removeDead destroys the leftovers of self-tests whose process has ended, or that
// have shown no sign of life for an hour.
func (s *selfTest) removeDead(ctx context.Context) error {
	j := &lease.Liveness{Machine: s.o.Machine, Now: s.lease.Now()}
	var failed error
	_, _, err := s.destroy(ctx, func(m *lease.Marks) bool {
		dead, err := j.Dead(ctx, m)
		failed = errors.Join(failed, err)
		return dead
	})
	return errors.Join(failed, err)
}

// destroy removes the disks of self-tests for which wanted returns true, VDI snapshots
// first, and the tasks of their transfers. It returns the number of removed disks, and
// the UUIDs of those that remain.
func (s *selfTest) destroy(ctx context.Context, wanted func(*lease.Marks) bool) (n int, left []string, err error) {
	all, err := s.pool.VDIs(ctx)
	if err != nil {
		return 0, nil, err
	}
	mine := slices.DeleteFunc(all, func(v xapi.VDI) bool {
		m, ok := lease.ReadMarks(v.OtherConfig, v.SnapshotTime.Time)
		return !ok || m.Repository != lease.SelfTestOwner || m.Role != lease.RoleSelfTest || !wanted(&m)
	})
	if len(mine) == 0 {
		return 0, nil, nil
	}
	slices.SortStableFunc(mine, func(a, b xapi.VDI) int {
		switch {
		case a.IsASnapshot == b.IsASnapshot:
			return 0
		case a.IsASnapshot:
			return -1
		}
		return 1
	})
	gone := make(map[xapi.Ref]bool)
	for _, v := range mine {
		gone[v.Ref] = true
	}
	tasks, err := s.pool.Tasks(ctx)
	if err != nil {
		return 0, nil, err
	}
	var errs []error
	for i := range tasks {
		if about, _ := lease.TransferOf(&tasks[i]); gone[about] {
			_ = s.pool.CancelTask(ctx, tasks[i].Ref) // it may have ended
			errs = append(errs, s.pool.DestroyTask(ctx, tasks[i].Ref))
		}
	}
	for _, v := range mine {
		s.lease.StopRenewing(v.Ref)
		if err := s.pool.DestroyVDI(ctx, v.Ref); err != nil {
			left, errs = append(left, v.UUID), append(errs, err)
			continue
		}
		n++
	}
	return n, left, errors.Join(errs...)
}
