package lint

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// dialect lists words that a reader of other Go projects does not meet in this
// sense, with the plain word, and how often each may occur in 10,000 words of
// comments and of docs. The limits are not zero, because each word has uses that
// are right: a question can begin with "what", and a command gives an example.
var dialect = []struct {
	name, plain    string
	match          *regexp.Regexp
	comments, docs float64
}{
	{"gives", "returns", word(`gives?|gave|given`), 3, 4},
	{"tells", "reports", word(`tells?|told`), 1, 1},
	{"says", "reports, requires, means", word(`says?|said`), 1, 5},
	{"at once", "concurrently, or immediately", word(`at once`), 1, 1},
	{"lies", "is stored", word(`lies?|lay`), 1, 1},
	{"goes", "is deleted", word(`goes|gone`), 1, 3},
	{"what", "a noun", word(`what`), 4, 16},
	{"behind", "after", word(`behind`), 1, 2},
	{"beside", "concurrently with, next to", word(`beside`), 1, 3},
	{"bears", "has", word(`bears?|bore`), 1, 1},
	{"leans", "references, relies", word(`leans?|leant`), 1, 1},
	{"knows", "recognizes, records", word(`knows?|knew`), 1, 2},
}

func word(s string) *regexp.Regexp { return regexp.MustCompile(`(?i)\b(` + s + `)\b`) }

var anyWord = regexp.MustCompile(`[A-Za-z][A-Za-z'-]*`)

// tracked returns the files of the repository that match a pattern of git.
func tracked(t *testing.T, pattern string) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", pattern)
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, f := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		name := filepath.Join("../..", f)
		if _, err := os.Stat(name); err == nil && f != "" {
			files = append(files, name)
		}
	}
	if len(files) == 0 {
		t.Fatalf("no files match %s", pattern)
	}
	return files
}

// comments returns the text of a Go file's comments.
func comments(t *testing.T, name string) string {
	t.Helper()
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var s scanner.Scanner
	s.Init(token.NewFileSet().AddFile(name, -1, len(src)), src, nil, scanner.ScanComments)
	var b strings.Builder
	for {
		_, tok, lit := s.Scan()
		if tok == token.EOF {
			return b.String()
		}
		if tok == token.COMMENT && !strings.HasPrefix(lit, "//go:") {
			b.WriteString(strings.TrimPrefix(lit, "//") + "\n")
		}
	}
}

var (
	fenced = regexp.MustCompile("(?s)```.*?```")
	quoted = regexp.MustCompile("`[^`\n]*`")
)

// docText returns the prose of a page, without code and quoted output.
func docText(t *testing.T, name string) string {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return quoted.ReplaceAllString(fenced.ReplaceAllString(string(p), ""), "")
}

// Comments and docs use the words of the field.
func TestPlainEnglish(t *testing.T) {
	texts := map[string]string{}
	for _, f := range tracked(t, "*.go") {
		texts[f] = comments(t, f)
	}
	for _, f := range tracked(t, "*.md") {
		texts[f] = docText(t, f)
	}
	var words [2]int
	for name, text := range texts {
		words[kind(name)] += len(anyWord.FindAllString(text, -1))
	}
	for _, d := range dialect {
		var found [2]int
		var worst [2]string
		var most [2]int
		for name, text := range texts {
			n, k := len(d.match.FindAllString(text, -1)), kind(name)
			if found[k] += n; n > most[k] {
				worst[k], most[k] = strings.TrimPrefix(name, "../../"), n
			}
		}
		for k, limit := range []float64{d.comments, d.docs} {
			rate := float64(found[k]) * 10000 / float64(words[k])
			what := []string{"comments", "docs"}[k]
			t.Logf("%-8s in %-8s %5.1f of %3.0f allowed in 10,000 words; most in %s", d.name, what, rate, limit, worst[k])
			if rate > limit {
				t.Errorf("%q stands %.1f times in 10,000 words of %s, %.0f are allowed; the plain word is %s; most are in %s", d.name, rate, what, limit, d.plain, worst[k])
			}
		}
	}
}

func kind(name string) int {
	if strings.HasSuffix(name, ".md") {
		return 1
	}
	return 0
}

// Functions stay short, types of state small. The limits are the current
// numbers: lower them after making one shorter, and do not raise them. A type of
// state has mostly unexported fields without tags; other large types are records
// of the pool, of a file or of a line of JSON, and may have as many fields as these.
func TestShape(t *testing.T) {
	const (
		longFunctions = 5  // of more than 80 lines, without tests
		largeTypes    = 25 // structs of more than 15 fields
		largeState    = 10 // of these, types of state
	)
	var functions, structs, state []string
	eachFile(t, func(name string, fset *token.FileSet, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if lines := fset.Position(n.End()).Line - fset.Position(n.Pos()).Line + 1; lines > 80 {
					functions = append(functions, fmt.Sprintf("%s %s: %d lines", name, n.Name.Name, lines))
				}
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok && s.Fields.NumFields() > 15 {
					line := fmt.Sprintf("%s %s: %d fields", name, n.Name.Name, s.Fields.NumFields())
					structs = append(structs, line)
					if isState(s) {
						state = append(state, line)
					}
				}
			}
			return true
		})
	})
	t.Logf("%d functions of more than 80 lines; %d structs of more than 15 fields, %d of them state", len(functions), len(structs), len(state))
	atMost(t, longFunctions, functions, "functions have more than 80 lines")
	atMost(t, largeTypes, structs, "structs have more than 15 fields")
	atMost(t, largeState, state, "structs of state have more than 15 fields")
}

func atMost(t *testing.T, limit int, found []string, what string) {
	t.Helper()
	if len(found) > limit {
		t.Errorf("%d %s, %d are allowed:\n%s", len(found), what, limit, strings.Join(found, "\n"))
	}
}

// eachFile calls fn for each Go file that is not a test.
func eachFile(t *testing.T, fn func(name string, fset *token.FileSet, f *ast.File)) {
	t.Helper()
	fset := token.NewFileSet()
	for _, name := range tracked(t, "*.go") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		fn(name, fset, f)
	}
}

// isState reports whether most fields of a struct are unexported and untagged.
func isState(s *ast.StructType) bool {
	n := 0
	for _, f := range s.Fields.List {
		for _, name := range f.Names {
			if f.Tag == nil && !name.IsExported() {
				n++
			}
		}
	}
	return 2*n > s.Fields.NumFields()
}

// Code is not written twice: sequences of statements that differ only in the
// names of variables are few. The limit is the current number.
func TestDuplicates(t *testing.T) {
	const (
		statements = 4  // of a sequence
		tokens     = 40 // at least
		limit      = 10
	)
	places := map[string][]string{}
	eachFile(t, func(name string, fset *token.FileSet, f *ast.File) {
		ast.Inspect(f, func(n ast.Node) bool {
			b, ok := n.(*ast.BlockStmt)
			if !ok {
				return true
			}
			for i := 0; i+statements <= len(b.List); i++ {
				form, n := shape(b.List[i : i+statements])
				if n >= tokens {
					places[form] = append(places[form], strings.TrimPrefix(fset.Position(b.List[i].Pos()).String(), "../../"))
				}
			}
			return true
		})
	})
	var twice []string
	for _, at := range places {
		if len(at) > 1 {
			twice = append(twice, strings.Join(at, " and "))
		}
	}
	slices.Sort(twice)
	t.Logf("%d sequences of %d statements are written twice or more", len(twice), statements)
	if testing.Verbose() {
		t.Log(strings.Join(twice, "\n"))
	}
	atMost(t, limit, twice, "sequences of statements are written twice or more")
}

// shape returns statements as text in which names of variables are left out, and
// the number of its nodes. Names of fields, methods and functions stay.
func shape(list []ast.Stmt) (form string, nodes int) {
	var b strings.Builder
	for _, s := range list {
		ast.Inspect(s, func(n ast.Node) bool {
			switch n := n.(type) {
			case nil:
				b.WriteByte(')')
				return false
			case *ast.Ident:
				b.WriteString("_")
			case *ast.SelectorExpr:
				b.WriteString("." + n.Sel.Name)
			case *ast.BasicLit:
				b.WriteString(n.Value)
			case *ast.BinaryExpr:
				b.WriteString(n.Op.String())
			case *ast.AssignStmt:
				b.WriteString(n.Tok.String())
			default:
				fmt.Fprintf(&b, "%T", n)
			}
			b.WriteByte('(')
			nodes++
			return true
		})
	}
	return b.String(), nodes
}

// What is built or downloaded does not get into the repository.
func TestNoLargeFiles(t *testing.T) {
	const most = 2 << 20
	for _, name := range tracked(t, "*") {
		if info, err := os.Lstat(name); err == nil && info.Size() > most {
			t.Errorf("%s has %d bytes, %d are allowed", strings.TrimPrefix(name, "../../"), info.Size(), most)
		}
	}
}
