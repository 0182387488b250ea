package pyre

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"testing"
)

// refused holds patterns that Python accepts and we do not: each has its reason in the
// package.
var refused = map[string]bool{
	`(?<=a)b`: true, `(?<!a)b`: true, `a++b`: true, `a*+`: true, `(?P<n>a)\1`: true, `\012`: true, `(a)(?P<n>b)\1`: true, `(?a)\w`: true, `(a)?(?(1)b|c)`: true,
	`\U00000041`: true, `\N{BULLET}`: true, `[\101]`: true, `(?>a+)b`: true, `\0`: true, `(?x:a b)`: true,
}

var patterns = []string{
	// Patterns of VmBackup's README.
	"DEV-phishing-test", "PRD-PRINTER1", "PRD-PRINT$", "PRD-a.*", "DEV-V.*TEMP$", "DEV-web3", "DEV-.*(TEST|test).*", "DEV-.*[Tt]est.*",
	".*SAVE$", "PRD-.*print[4-5]$", "PRD-.*print[6-8]$", `PRD-.*print[\d{1,}]$`, "PRD-[aA].*", "PRD-[aA.*", "PROD.*", "DEV.*", "TEMP-.*",
	".*", "*", "PRD-a*", "^PRD", "PROD*", "^PRD-test[1-2]$", "DEV-RH.*", "PROD-CentOS7.large-user-disks", "DEV-my.*",
	// Corners.
	"", "a|b", "(a|ab)(c|bcd)", "a{2}", "a{,2}b", "a{2,}", "a{}", "a{x}", "{", "a{1", "a{ 1}", "{1}", "a{2}{3}", "a**", "a*?", "a+?b", "a??b",
	"a++b", "a*+", "(*)", "(", ")", "[", "]", "[]", "[]a]", "[^]a]", "[a-]", "[-a]", "[a-z-[aeiou]]", "[[:alpha:]]", "[[]", "[z-a]", `[\w-z]`,
	`[a\-z]`, `[\]]`, `\d+`, `\w+`, `\s`, `\S+$`, `\bPRD`, `\Bx`, `a\b`, `\Aa`, `a\Z`, `a\z`, `\Ga`, `\pL`, `\h`, `\q`, `\-`, `\.`, `\ `, `\#`, `\`, `\x41`, `\x4`,
	`\u0041`, `\U00000041`, `\N{BULLET}`, `\012`, `\0`, `[\101]`, `[\b]`, `\cA`, `\e`, `(a)\1`, `(a)\2`, `(?P<n>a)(?P=n)`, `(?P<n>a)\1`, `(a)(?P<n>b)\1`,
	`(?<n>a)`, `(?'n'a)`, `(?P<1>a)`, `(?P>n)`, `(?:a|b)c`, `(?=a)a`, `(?!a)b`, `(?<=a)b`, `(?<!a)b`, `(?#x)a`, `(?i)prd`, `prd(?i)`, `(?i:p)RD`,
	`(?-i:p)rd`, `(?s).`, `(?m)^a$`, `(?x) a b # c`, `(?x)a\ b`, `(?x:a b)`, `(?a)\w`, `(?L)a`, `(?u)a`, `(?n)a`, `(?>a+)b`, `(a)?(?(1)b|c)`, `^*`, `$*`, `\b+`, `|`, `a|`,
	`|a`, `(|a)b`, `()`, `a$`, `a.b`, `.\n`, "a\nb", "ä+", "[ä-ü]", `\\`, `a\\`, "x{2,1}", `(?:a{0,1}){2}`, `(?!)`, `[^\d]`, `[\s\S]`, `[a^]`, `[#]`, `a#b`, "(?x)[ ]",
	`((a))\2`, `(?i)Ä`, `\_`, `\é`, `[a-\d]`, `[\d-a]`, `.{3}$`, `(a+)+$`,
}

var names = []string{
	"", "a", "b", "aa", "ab", "aab", "aaa", "abc", "abcd", "ba", "c", "ac", "x", "xx", "a.b", "a b", "a\nb", "a\n", "\n", "A", "AA", "Aa", "a-", "-", "_", " ", "#", "a#b",
	"PRD", "PRD-", "PRD-a", "PRD-aa", "PRD-aaaSomething", "PRD-Test", "PRD-123", "PRD-PRINT", "PRD-PRINTER1", "PRD-print4", "PRD-xprint5", "PRD-print42", "PRD-print6",
	"prd-print4", "xPRD", "DEV-web3", "DEV-web33", "DEV-VxTEMP", "DEV-VTEMPx", "DEV-my-Test", "DEV-my-TEST-2", "mySAVE", "SAVE", "TEMP-1", "PROD-CentOS7-large-user-disks",
	"PRO", "PROD", "DEV-RH6", "DEV mySql", "ä", "ää", "ö", "Ä", "ÄB", "a{}", "a{x}", "{", "a{1", "a{ 1}", "{1}", "a{2}", "]", "[", "[a", "e]", "b]", ":]", "a]", "^", `\`, `a\`, "\b", "e", "1", "12", "é",
	"aaaaaaaaaaaaaaaaaaaa!",
}

const judge = `
import json, re, sys, warnings
warnings.simplefilter("ignore")
patterns, names = json.load(sys.stdin)
out = []
for p in patterns:
    try:
        r = re.compile(p)
        out.append([1 if r.match(n) else 0 for n in names])
    except Exception:
        out.append(None)
json.dump(out, sys.stdout)
`

// Python itself provides the expected result of each pattern.
func TestAsPython(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIP: no python3")
	}
	in, err := json.Marshal([]any{patterns, names})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, "-c", judge)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var want [][]int
	if err := json.Unmarshal(out, &want); err != nil {
		t.Fatal(err)
	}
	for i, text := range patterns {
		p, err := Compile(text)
		if err != nil && !errors.Is(err, ErrPattern) {
			t.Errorf("%q: %v is not ErrPattern", text, err)
		}
		if got, ok := p != nil, want[i] != nil; got != ok {
			if !ok || !refused[text] {
				t.Errorf("%q: taken %v, by Python %v (%v)", text, got, ok, err)
			}
			continue
		} else if !got {
			continue
		}
		if refused[text] {
			t.Errorf("%q is not refused any more", text)
		}
		for j, name := range names {
			got, err := p.Match(name)
			if err != nil || got != (want[i][j] == 1) {
				t.Errorf("%q on %q: %v %v, by Python %d", text, name, got, err, want[i][j])
			}
		}
	}
}

func FuzzCompile(f *testing.F) {
	for _, p := range patterns {
		f.Add(p, "PRD-a")
	}
	f.Fuzz(func(t *testing.T, text, name string) {
		if len(text) > 64 || len(name) > 32 {
			return
		}
		p, err := Compile(text)
		if err != nil {
			if !errors.Is(err, ErrPattern) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		p.re.MatchTimeout = 1e7
		_, _ = p.Match(name)
	})
}
