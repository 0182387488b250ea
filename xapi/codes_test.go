package xapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// known lists the codes that a backup tool should recognise, and whether a
// retry may help: Y yes, N no, A after an action. The table must agree with it
// for every code.
const known = `
SESSION_INVALID A
SESSION_AUTHENTICATION_FAILED N
SESSION_AUTHORIZATION_FAILED N
HOST_IS_SLAVE A
HOST_STILL_BOOTING Y
HOST_HAS_NO_MANAGEMENT_IP Y
HOST_OFFLINE Y
HOST_NOT_LIVE Y
CANNOT_CONTACT_HOST Y
NO_HOSTS_AVAILABLE A
HANDLE_INVALID N
UUID_INVALID N
MESSAGE_METHOD_UNKNOWN A
MESSAGE_REMOVED A
MESSAGE_PARAMETER_COUNT_MISMATCH A
RBAC_PERMISSION_DENIED N
LICENCE_RESTRICTION A
LICENSE_RESTRICTION A
FEATURE_RESTRICTED A
OTHER_OPERATION_IN_PROGRESS Y
OPERATION_BLOCKED N
OPERATION_NOT_ALLOWED N
TOO_MANY_PENDING_TASKS Y
VM_BAD_POWER_STATE A
VM_IS_TEMPLATE N
VM_IS_SNAPSHOT N
VM_HAS_VUSBS A
VM_HAS_PCI_ATTACHED A
VM_HAS_VGPU A
VM_LACKS_FEATURE A
VM_NON_SUSPENDABLE A
VM_IS_IMMOBILE A
VM_SNAPSHOT_WITH_QUIESCE_FAILED A
VM_SNAPSHOT_WITH_QUIESCE_TIMEOUT A
VM_SNAPSHOT_WITH_QUIESCE_PLUGIN_DEOS_NOT_RESPOND A
VM_SNAPSHOT_WITH_QUIESCE_NOT_SUPPORTED A
VM_CHECKPOINT_SUSPEND_FAILED A
VM_CHECKPOINT_RESUME_FAILED A
VM_REVERT_FAILED N
VDI_IN_USE Y
VDI_IO_ERROR Y
VDI_TOO_LARGE A
VDI_INCOMPATIBLE_TYPE A
VDI_NO_CBT_METADATA A
VDI_CBT_ENABLED A
VDI_MISSING A
VDI_NOT_AVAILABLE A
VDI_NOT_MANAGED N
VDI_IS_SHARABLE N
VDI_ON_BOOT_MODE_INCOMPATIBLE_WITH_OPERATION N
VDI_READONLY N
VDI_TOO_SMALL N
VDI_NOT_SPARSE N
VDI_IS_ENCRYPTED N
SR_HAS_NO_PBDS A
SR_NOT_ATTACHED A
SR_OPERATION_NOT_SUPPORTED N
UNIMPLEMENTED_IN_SM_BACKEND N
SR_FULL A
SR_BACKEND_FAILURE_44 A
SR_BACKEND_FAILURE_46 Y
SR_BACKEND_FAILURE_47 Y
SR_BACKEND_FAILURE_66 N
SR_BACKEND_FAILURE_78 Y
SR_BACKEND_FAILURE_79 N
SR_BACKEND_FAILURE_80 Y
SR_BACKEND_FAILURE_81 Y
SR_BACKEND_FAILURE_82 Y
SR_BACKEND_FAILURE_109 Y
SR_BACKEND_FAILURE_110 N
SR_BACKEND_FAILURE_181 N
SR_BACKEND_FAILURE_200 Y
SR_BACKEND_FAILURE_201 Y
SR_BACKEND_FAILURE_202 Y
SR_BACKEND_FAILURE_453 Y
SR_BACKEND_FAILURE_457 Y
SR_BACKEND_FAILURE_458 Y
SR_BACKEND_FAILURE_459 N
SR_BACKEND_FAILURE_460 N
SR_BACKEND_FAILURE_1200 N
SR_UNHEALTHY Y
SR_DEVICE_IN_USE Y
NETWORK_INCOMPATIBLE_PURPOSES N
IMPORT_ERROR N
IMPORT_ERROR_PREMATURE_EOF N
IMPORT_INCOMPATIBLE_VERSION N
DEFAULT_SR_NOT_FOUND A
TASK_CANCELLED N
NOT_SUPPORTED_DURING_UPGRADE Y
EVENTS_LOST A
EVENT_FROM_TOKEN_PARSE_FAILURE A
XAPI_HOOK_FAILED Y
INTERNAL_ERROR Y
`

func TestCodeTable(t *testing.T) {
	class := map[string]RetryClass{"Y": RetryYes, "N": RetryNo, "A": RetryAfterAction}
	used := make(map[Code]bool)
	for _, line := range strings.Split(strings.TrimSpace(known), "\n") {
		name, want, _ := strings.Cut(line, " ")
		info, ok := Lookup(Code(name))
		if !ok || info.Class != class[want] {
			t.Errorf("%s: class %v, want %v", name, info.Class, class[want])
		}
		used[info.Code] = true
	}
	seen := make(map[Code]bool)
	for _, info := range Codes() {
		if seen[info.Code] {
			t.Errorf("%s stands twice in the table", info.Code)
		}
		seen[info.Code] = true
		if info.Text == "" || info.Hint == "" || strings.HasSuffix(info.Text, ".") || !strings.HasSuffix(info.Hint, ".") {
			t.Errorf("%s: text %q, hint %q", info.Code, info.Text, info.Hint)
		}
		if yes := info.Class == RetryYes; yes != (info.Attempts > 0) || yes != (info.Delay > 0) || info.MaxDelay < info.Delay {
			t.Errorf("%s: class %v with %d tries after %v to %v", info.Code, info.Class, info.Attempts, info.Delay, info.MaxDelay)
		}
	}
	if len(used) < 80 {
		t.Errorf("only %d entries of the table were asked for", len(used))
	}
	if _, ok := Lookup("NO_SUCH_CODE"); ok {
		t.Error("an unknown code is in the table")
	}
}

func TestRetry(t *testing.T) {
	for name, test := range map[string]struct {
		err   error
		calls int
		waits time.Duration
	}{
		"busy disk":       {&Error{Code: VDIInUse}, 11, 50 * time.Second},
		"in use, wrapped": {fmt.Errorf("x: %w", &Error{Code: VDIInUse}), 11, 50 * time.Second},
		"I/O error":       {&Error{Code: VDIIOError}, 2, 5 * time.Second},
		"not found":       {&Error{Code: HandleInvalid}, 1, 0},
		"no space":        {&Error{Code: SRNoSpace}, 1, 0},
		"chain too long":  {&Error{Code: SRChainTooLong}, 1, 0}, // takes hours, so it is left to the next run
		"unknown code":    {&Error{Code: "WHATEVER"}, 1, 0},
		"reset":           {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, 11, (1 + 2 + 4 + 8 + 6*15) * time.Second},
		"end of file":     {fmt.Errorf("x: %w", io.EOF), 11, (1 + 2 + 4 + 8 + 6*15) * time.Second},
		"HTTP 500":        {&HTTPError{Status: 500}, 2, 5 * time.Second},
		"HTTP 403":        {&HTTPError{Status: 403}, 1, 0},
		"untrusted":       {&UntrustedHostError{Cause: &net.OpError{Op: "dial"}}, 1, 0},
		"other":           {errors.New("other"), 1, 0},
	} {
		synctest.Test(t, func(t *testing.T) {
			calls, start := 0, time.Now()
			err := new(Client).Retry(t.Context(), func(context.Context) error { calls++; return test.err })
			if !errors.Is(err, test.err) || calls != test.calls || time.Since(start) != test.waits {
				t.Errorf("%s: %d calls in %v, want %d in %v (%v)", name, calls, time.Since(start), test.calls, test.waits, err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
		defer cancel()
		calls := 0
		err := new(Client).Retry(ctx, func(context.Context) error { calls++; return &Error{Code: VDIInUse} })
		if calls != 3 || !IsCode(err, VDIInUse) {
			t.Errorf("cancelled wait: %d calls, %v", calls, err)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		err := new(Client).Retry(t.Context(), func(context.Context) error {
			if calls++; calls < 4 {
				return &Error{Code: VDIInUse}
			}
			return nil
		})
		if calls != 4 || err != nil {
			t.Errorf("success after %d calls: %v", calls, err)
		}
	})
}

func TestRepeatable(t *testing.T) {
	for method, want := range map[string]bool{
		"VM.get_record": true, "VDI.set_name_label": true, "VDI.destroy": true, "task.cancel": true,
		"VDI.list_changed_blocks": true, "VM.remove_from_other_config": true, "event.from": true,
		"VM.snapshot": false, "VDI.create": false, "VM.clone": false, "VM.add_to_other_config": false,
		"Async.VDI.destroy": false, "task.create": false, "session.login_with_password": false, "nonsense": false,
	} {
		if repeatable(method) != want {
			t.Errorf("%s: repeatable is %v", method, !want)
		}
	}
}

func TestFingerprints(t *testing.T) {
	der := []byte("certificate")
	shown := Fingerprint(der)
	for _, s := range []string{shown, strings.ToLower(shown), strings.ReplaceAll(shown, ":", ""), " " + strings.ToLower(strings.ReplaceAll(shown, ":", "")) + "\n",
		// Row "a fingerprint pasted from openssl" of the fault list.
		"SHA256 Fingerprint=" + shown, "sha256 Fingerprint=" + shown + "\n", "SHA-256:" + shown, "sha256:" + strings.ToLower(strings.ReplaceAll(shown, ":", ""))} {
		if _, err := parseFingerprint(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "AB", strings.Repeat("g", 64), shown + ":00"} {
		if _, err := parseFingerprint(s); err == nil {
			t.Errorf("%q was taken", s)
		}
	}
	if got, err := CleanFingerprint("SHA256 Fingerprint=" + strings.ToLower(shown)); err != nil || got != shown {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := parseFingerprint("SHA1 Fingerprint=" + shown[:59]); err == nil || !strings.Contains(err.Error(), "SHA-1") {
		t.Errorf("a SHA-1 sum: %v", err)
	}
}

func TestAddresses(t *testing.T) {
	c := &Client{scheme: "https", port: "8443"}
	for in, want := range map[string]string{
		"10.0.0.1": "10.0.0.1:8443", "fe80::1": "[fe80::1]:8443", "[fe80::1]": "[fe80::1]:8443",
		"[fe80::1]:5": "[fe80::1]:5", "10.0.0.1:99": "10.0.0.1:99", "xen1.example": "xen1.example:8443",
	} {
		if got := c.hostPort(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"https://10.0.0.2/export_raw_vdi?x=1":   "10.0.0.2:8443",
		"https://[2001:db8::2]/export_raw_vdi":  "[2001:db8::2]:8443",
		"http://127.0.0.2:8444/import_raw_vdi?": "127.0.0.2:8444",
	} {
		if got, err := c.redirect(in); err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "/export", "https://", "%"} {
		if got, err := c.redirect(in); err == nil {
			t.Errorf("redirect to %q leads to %s", in, got)
		}
	}
	for in, want := range map[string]string{
		"https://h": "https h:443", "http://h:81/": "http h:81", "h": "https h:443", "fe80::1": "https [fe80::1]:443", "h:5": "https h:5",
	} {
		scheme, addr, err := parseURL(in)
		if got := scheme + " " + addr; err != nil || got != want {
			t.Errorf("%s: %s, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "ftp://h", "https://u:p@h", "https://h/path", "https://"} {
		if _, _, err := parseURL(in); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%q: %v", in, err)
		}
	}
}
