package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"xenkeep/job"
	"xenkeep/job/lease"
	"xenkeep/repo"
	"xenkeep/xapi"
)

// Values of Finding.Level.
const (
	OK   = "ok"
	Warn = "warn"
	Fail = "fail"
)

// Finding is the result of one check.
type Finding struct {
	Level string `json:"level"` // ok, warn or fail
	What  string `json:"what"`
	Text  string `json:"text"`
	Hint  string `json:"hint,omitempty"`
}

// Pool checks a pool for everything that a backup needs. It changes nothing there.
func Pool(ctx context.Context, pool *xapi.Client) ([]Finding, error) {
	var out []Finding
	add := func(level, what, hint, format string, args ...any) {
		out = append(out, Finding{Level: level, What: what, Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	rec, err := pool.Pool(ctx)
	if err != nil {
		return nil, err
	}
	add(OK, "login", "", "logged in to pool %s (%s) at %s", rec.NameLabel, rec.UUID, pool.Master())
	if err := checkRole(ctx, pool); err != nil {
		add(Fail, "role", "log in as root, or with the role vm-power-admin or above", "the user may not make tasks: %v", err)
	} else {
		add(OK, "role", "", "tasks can be made and removed")
	}
	hosts, err := pool.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	metrics, err := pool.HostMetrics(ctx)
	if err != nil {
		return nil, err
	}
	live := make(map[xapi.Ref]bool)
	for _, m := range metrics {
		live[m.Ref] = m.Live
	}
	for _, h := range hosts {
		version := h.SoftwareVersion["product_version"]
		switch {
		case !live[h.Metrics]:
			add(Warn, "host "+h.NameLabel, "bring it back, or take it out of the pool", "is not live; disks on its local SRs cannot be read")
		default:
			add(OK, "host "+h.NameLabel, "", "%s %s, at %s", h.SoftwareVersion["product_brand"], version, h.Address)
			out = append(out, checkClock(ctx, pool, &h))
		}
	}
	if certs, err := pool.Certificates(ctx); err == nil {
		for _, c := range certs {
			if !c.NotAfter.IsZero() && time.Until(c.NotAfter.Time) < 30*24*time.Hour {
				add(Warn, "certificate "+c.UUID, "renew it on the host, then pin the new fingerprint", "ends on %s", c.NotAfter.Format(time.DateOnly))
			}
		}
		add(OK, "certificates", "", "%d known to the pool", len(certs))
	} else {
		add(Warn, "certificates", "pin the fingerprint of each host", "the pool does not list its hosts' certificates")
	}
	srs, err := checkSRs(ctx, pool)
	if err != nil {
		return nil, err
	}
	out = append(out, srs...)
	half, err := HalfRestored(ctx, pool)
	if err != nil {
		return nil, err
	}
	out = append(out, half...)
	blocked, err := Blocked(ctx, pool)
	if err != nil {
		return nil, err
	}
	out = append(out, blocked...)
	nets, err := pool.Networks(ctx)
	if err != nil {
		return nil, err
	}
	var nbd []string
	for _, n := range nets {
		if slices.Contains(n.Purpose, "nbd") {
			nbd = append(nbd, n.NameLabel)
		}
	}
	if len(nbd) > 0 {
		add(OK, "NBD", "", "served on network %s", strings.Join(nbd, ", "))
	} else {
		add(Warn, "NBD", "", "no network is set up for NBD: disks are read as VHD exports")
	}
	return out, nil
}

// checkClock compares a host's clock with ours: the pool dates the snapshots, and
// retention and coverage use these dates.
func checkClock(ctx context.Context, pool *xapi.Client, h *xapi.Host) Finding {
	f := Finding{Level: OK, What: "clock of host " + h.NameLabel, Text: "agrees with that of this machine"}
	asked := time.Now()
	t, err := pool.ServerTime(ctx, h.Ref)
	if err != nil {
		f.Level, f.Text, f.Hint = Warn, "cannot be read: "+job.OneLine(err), "compare it with that of this machine"
		return f
	}
	now := time.Now()
	switch ahead, behind := t.Sub(now), asked.Sub(t.Time); {
	case ahead > job.ClockSkew:
		f.Level, f.Text = Warn, fmt.Sprintf("is %v ahead of that of this machine", ahead.Round(time.Second))
	case behind > job.ClockSkew:
		f.Level, f.Text = Warn, fmt.Sprintf("is %v slow compared with that of this machine", behind.Round(time.Second))
	}
	if f.Level == Warn {
		f.Hint = "set up NTP on hosts and on this machine: snapshots have the pool's dates, and retention counts from them"
	}
	return f
}

func checkRole(ctx context.Context, pool *xapi.Client) error {
	t, err := pool.CreateTask(ctx, "xenkeep doctor", "")
	if err != nil {
		return err
	}
	return pool.DestroyTask(ctx, t)
}

func checkSRs(ctx context.Context, pool *xapi.Client) ([]Finding, error) {
	srs, err := pool.SRs(ctx)
	if err != nil {
		return nil, err
	}
	sms, err := pool.SMs(ctx)
	if err != nil {
		return nil, err
	}
	features := make(map[string]map[string]xapi.Int)
	for _, m := range sms {
		features[m.Type] = m.Features
	}
	var out []Finding
	for _, sr := range srs {
		if sr.ContentType == "iso" || sr.Type == "udev" || sr.IsToolsSR {
			continue
		}
		f := Finding{Level: OK, What: "SR " + sr.NameLabel}
		_, snap := features[sr.Type]["VDI_SNAPSHOT"]
		_, cbt := features[sr.Type]["VDI_CONFIG_CBT"]
		free := int64(sr.PhysicalSize - sr.PhysicalUtilisation)
		f.Text = fmt.Sprintf("%s, %s free of %s, snapshots: %s, changed-block tracking: %s", sr.Type,
			humanize.IBytes(uint64(max(free, 0))), humanize.IBytes(uint64(max(sr.PhysicalSize, 0))), yesNo(snap), yesNo(cbt))
		_, err := pool.HostsFor(ctx, sr.Ref)
		unreached := xapi.IsCode(err, xapi.NoHostsAvailable)
		if err != nil && !unreached {
			return nil, err
		}
		switch {
		case unreached:
			f.Level, f.Hint = Fail, "plug its PBD on a live host"
			f.Text += "; no live host reaches it"
		case !snap:
			f.Level, f.Hint = Warn, "its disks cannot be backed up: move them to another SR"
		case sr.Thick():
			f.Text += "; thick: a snapshot needs the full size of each running disk, and no base is kept unless --keep-base snapshot"
		}
		out = append(out, f)
	}
	return out, nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

// Repository checks that objects can be written to the repository and read back.
func Repository(ctx context.Context, r *repo.Repository) ([]Finding, error) {
	var out []Finding
	for _, p := range r.Problems() {
		out = append(out, Finding{Level: Fail, What: p.Object, Text: p.Err.Error(), Hint: "run: xenkeep check"})
	}
	claim := &repo.Claim{Run: "doctor", Machine: job.Hostname(), Process: job.ProcessName(), Started: time.Now().UTC()}
	err := r.PutClaim(ctx, claim)
	if err == nil {
		err = r.DropClaim(ctx, claim)
	}
	if err != nil {
		return append(out, Finding{Level: Fail, What: "repository", Text: "cannot be written: " + err.Error(), Hint: "check the rights on it, and its free space"}), nil
	}
	return append(out, Finding{Level: OK, What: "repository", Text: fmt.Sprintf("%s opens and can be written; format %d, id %s",
		r.Objects().Location(), r.Config().Format, r.ID()[:8])}), nil
}

// HalfRestored returns findings for the half-restored disks of a pool.
func HalfRestored(ctx context.Context, pool *xapi.Client) ([]Finding, error) {
	vdis, err := pool.VDIs(ctx)
	if err != nil {
		return nil, err
	}
	var out []Finding
	for i := range vdis {
		v := &vdis[i]
		why := lease.HalfRestored(v)
		if why == "" {
			continue
		}
		what := "VDI " + v.UUID
		for _, ref := range v.VBDs {
			b, err := pool.VBD(ctx, ref)
			if err != nil {
				continue // deleted meanwhile
			}
			if vm, err := pool.VM(ctx, b.VM); err == nil && vm.Real() {
				what = fmt.Sprintf("disk %s of VM %s", b.DeviceName(), vm.NameLabel)
			}
		}
		out = append(out, Finding{Level: Fail, What: what, Text: why, Hint: lease.HalfHint})
	}
	return out, nil
}
