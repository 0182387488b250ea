package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// Values that a run could not use are refused when the file is read, with their line.
func TestCheckValues(t *testing.T) {
	const head = "[repository]\nlocation='/r'\n[pools.a]\nurl='xen1'\n[pools.b]\nurl='https://xen2:8443'\n[jobs.j]\nselect={all=true}\n" // 8 lines
	for _, c := range []struct{ in, want string }{
		// Limits.
		{"pool='a'\nlimits={read='fast'}", `10: jobs.j.limits.read: limit "fast": rate "fast": want bytes a second`},
		{"pool='a'\nlimits={write='20M 07:00-19:00, 100M'}", "10: jobs.j.limits.write: limit"},
		{"pool='a'\nlimits={write='20M@07:00-25:00'}", `hours "07:00-25:00": want HH:MM-HH:MM`},
		{"pool='a'\nlimits={write='20M@07:00-07:00'}", "want HH:MM-HH:MM"},
		{"pool='a'\nlimits={read='3'}", "want 1K at least"},
		{"pool='a'\nlimits={read='10M,20M'}", "two rates without hours"},
		{"pool='a'\nlimits={read=5}", "10: jobs.j.limits"},
		// Hooks.
		{"pool='a'\n[jobs.j.hooks]\nbefore='x'\ntime-out=600", `12: jobs.j.hooks.time-out: 600: want numbers with h, m or s`},
		{"pool='a'\n[jobs.j.hooks]\nbefore='x'\ntime-out='-3m'", `12: jobs.j.hooks.time-out: duration "-3m"`},
		{"pool='a'\n[jobs.j.hooks]\nbefore='x'\ntime-out='soon'", `12: jobs.j.hooks.time-out: duration "soon"`},
		{"pool='a'\n[jobs.j.hooks]\nbefore='x'\ntime-out=1.5", `12: jobs.j.hooks.time-out: want a length of time`},
		{"pool='a'\n[jobs.j.hooks]\nvm-after=' '", `11: jobs.j.hooks.vm-after: " " is no command`},
		{"pool='a'\n[jobs.j.hooks]\nbefore=['a', 'b']", "11: "},
		{"pool='a'\n[jobs.j.hooks]\nvm-befor='x'", `11: jobs.j.hooks.vm-befor: unknown key; did you mean "vm-before"?`},
		// Windows.
		{"pool='a'\nwindow={stop-after='25:00'}", `10: jobs.j.window`},
		{"pool='a'\nwindow={stop-after='6'}", "want a time of day"},
		{"pool='a'\nwindow={stop-after=6}", `10: jobs.j.window.stop-after: want a time of day`},
		{"pool='a'\nwindow={stop-after='-6h'}", "want a time of day"},
		{"pool='a'\nwindow={stop-after=06:00:00}", "10: jobs.j.window"},
		{"pool='a'\nwindow={stop-after='06:00-08:00'}", "want a time of day"},
		// How often.
		{"pool='a'\nprune='0 3 * * *'", `10: jobs.j.prune: "0 3 * * *" is none of [never always daily weekly monthly]`},
		{"pool='a'\nprune='Weekly'", "is none of"},
		{"pool='a'\nprune=7", "10: jobs.j.prune"},
		{"pool='a'\ncheck={every='hourly'}", `10: jobs.j.check.every: "hourly" is none of`},
		{"pool='a'\ncheck={budget=-1}", "10: jobs.j.check.budget: -1 is less than nothing"},
		{"pool='a'\nmax-repack=-3", "10: jobs.j.max-repack: -3 is less than nothing"},
		{"pool='a'\nkeep={within=3}", `10: jobs.j.keep.within: want a length of time`},
		{"pool='a'\nkeep={daily=2.5}", `10: jobs.j.keep.daily: want a number or "all"`},
		{"pool='a'\n[[jobs.j.rules]]\nnames=['x']\n[[jobs.j.rules]]\nnames=['y']\nkeep={last=-2}", "14: jobs.j.rules[1].keep"},
		{"pool='a'\n[[jobs.j.rules]]\nnames=['x']\n[[jobs.j.rules]]\nnames=['y']\ndisks='second'", `14: jobs.j.rules[1].disks: "second" is none of`},
		{"pool='a'\nrules=[{names=['x']}, {uuids=['u']}]", `10: jobs.j.rules[1].uuids: "u" is no UUID`},
		// Notifications.
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h:x'\nfrom='a@b'\nto=['c@d']", `11: jobs.j.notify.mail.server: "h:x": want HOST or HOST:PORT`},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h:70000'\nfrom='a@b'\nto=['c@d']", "want HOST or HOST:PORT"},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='smtp://h'\nfrom='a@b'\nto=['c@d']", "want HOST or HOST:PORT"},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h'\nfrom='nobody'\nto=['c@d']", `12: jobs.j.notify.mail.from: address "nobody"`},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h'\nfrom='a@b'\nto=['c@d', 'e at f']", `13: jobs.j.notify.mail.to: address "e at f"`},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h'\nfrom='a@b'\nto=[]", "13: jobs.j.notify.mail.to: to whom?"},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h'\nfrom='a@b'\nto=['c@d']\ntls='ssl'", `14: jobs.j.notify.mail.tls: "ssl" is none of`},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h'\nfrom='a@b'\nto=['c@d']\nwhen='never'", `"never" is none of [always failure]`},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h'\nfrom='a@b'\nto=['c@d']\nattempts=-1", "14: jobs.j.notify.mail.attempts: -1: want 0 to 10"},
		{"pool='a'\n[jobs.j.notify.mail]\nserver='h'\nfrom='a@b'\nto=['c@d']\nuser='u'\npassword={file='a', env='b'}", "15: jobs.j.notify.mail.password: one of file, command and env"},
		{"pool='a'\n[notify.webhook]\nurl='ftp://h/x'", `11: notify.webhook.url: "ftp://h/x" is no address of the web`},
		{"pool='a'\n[notify.webhook]\nurl='https://'", "is no address of the web"},
		{"pool='a'\n[notify.webhook]\nurl='https://h'\ntime-out=30", "12: notify.webhook.time-out: 30: want"},
		{"pool='a'\n[notify.webhook]\nwhen='failure'", "10: notify.webhook.url: where to?"},
		{"pool='a'\n[notify.ping]\nsuccess='ping.example.net/ID'", `11: notify.ping.success: "ping.example.net/ID" is no address of the web`},
		{"pool='a'\n[notify.ping]\nstart='http://h'\nattempts=99", "12: notify.ping.attempts: 99: want 0 to 10"},
		{"pool='a'\n[log]\nformat='xml'", `11: log.format: "xml" is none of`},
		// Pools and repositories.
		{"", "7: jobs.j.pool: which of [a b]?"},
		{"pool='c'", `9: jobs.j.pool: no pool "c"`},
		{"pool='A'", `no pool "A"; did you mean "a"?`},
		{"pool='a'\n[pools.c]\nurl='ftp://h'", `11: pools.c.url: "ftp://h": want https://HOST`},
		{"pool='a'\n[pools.c]\nurl='https://h/path'", "want https://HOST"},
		{"pool='a'\n[pools.c]\nurl='https://root:x@h'", "want https://HOST"},
		{"pool='a'\n[pools.c]\nuser='root'", "10: pools.c.url: which pool?"},
		{"pool='a'\n[pools.c]\nurl='h'\nfingerprints=['AB:CD']", `12: pools.c.fingerprints: "AB:CD": want a SHA-256 sum`},
		{"pool='a'\n[pools.c]\nurl='h'\nca-file='f'\ninsecure=true", "13: pools.c.insecure"},
		{"pool='a'\n[pools.c]\nurl='h'\npassword='secret'", "12: pools.c.password"},
		// Which VMs and how many.
		{"pool='a'\nexclude={uuids=['3f8a1e52']}", `10: jobs.j.exclude.uuids: "3f8a1e52" is no UUID`},
		{"pool='a'\nexclude={names=['']}", `"" is no name`},
		{"pool='a'\nexclude={tags=[' ']}", `" " is no name`},
		{"pool='a'\nexclude={disk-patterns=['(']}", "10: jobs.j.exclude.disk-patterns"},
		{"pool='a'\nexclude={power-state=['off']}", `"off" is none of`},
		{"pool='a'\nconcurrency={vms=-1}", "10: jobs.j.concurrency.vms: -1: want 0 to 1000"},
		{"pool='a'\nnbd-connections=17", "10: jobs.j.nbd-connections: 17: want 0 to 16"},
		{"pool='a'\nretries=-1", "10: jobs.j.retries: -1: want 0 to 10"},
		{"pool='a'\ncompression='zip'", "10: jobs.j.compression"},
		{"pool='a'\ntransport='tcp'", "10: jobs.j.transport"},
		{"pool='a'\nkeep-base='yes'", "10: jobs.j.keep-base"},
		{"pool='a'\ntags=['']", `10: jobs.j.tags: "" is no name`},
	} {
		_, err := Parse("x.toml", []byte(head+c.in))
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "x.toml:") || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s\n%v\nwant %s", c.in, err, c.want)
		}
	}
	for _, in := range []string{
		"limits={read='200M', write='20M@07:00-19:00,100M'}", "hooks={before='true', time-out='90s'}", "window={stop-after='24h'}", "prune='monthly'\ncheck={every='always', budget='1.5T'}",
		"notify={mail={server='smtp.example.net', from='Night <a@b>', to=['c@d']}}", "notify={mail={server='[2001:db8::1]:25', from='a@b', to=['c@d'], tls='none'}}",
		"notify={webhook={url='http://h:8080/x?y=z', time-out='5s'}, ping={failure='https://h/ID/fail', attempts=1}}", "nbd-connections=16", "tags=['night, two']",
	} {
		if _, err := Parse("x.toml", []byte(head+"pool='a'\n"+in)); err != nil {
			t.Errorf("%s: %v", in, err)
		}
	}
	for _, url := range []string{"xen1", "xen1:8443", "https://xen1", "https://[2001:db8::1]:443/", "2001:db8::1", "192.0.2.1"} {
		if _, err := Parse("x.toml", fmt.Appendf(nil, "%spool='c'\n[pools.c]\nurl='%s'\nfingerprints=['SHA256 %s']", head, url, strings.Repeat("aB:", 31)+"01")); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	// Row S10 of the fault list: plain HTTP, which shows the password to the network,
	// needs the same permission as an unknown host.
	plain := head + "pool='c'\n[pools.c]\nurl='http://xen1'\n"
	if _, err := Parse("x.toml", []byte(plain)); err == nil || !strings.Contains(err.Error(), "insecure = true") {
		t.Errorf("plain HTTP: %v", err)
	}
	if _, err := Parse("x.toml", []byte(plain+"insecure=true\n")); err != nil {
		t.Errorf("plain HTTP with permission: %v", err)
	}
	// All faults are reported together, in the order of the file.
	_, err := Parse("x.toml", []byte("[jobs.j]\nselect={}\nprune='x'\nhooks={time-out=3}\n[pools.p]\nurl=''\n"))
	var all *Problems
	if !errors.As(err, &all) || len(all.List) != 5 || all.List[4].Line != 6 {
		t.Errorf("%v", err)
	}
}
