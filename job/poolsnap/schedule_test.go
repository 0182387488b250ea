package poolsnap

import (
	"errors"
	"reflect"
	"testing"
)

func TestWhen(t *testing.T) {
	for _, c := range []struct {
		parse func(string) (When, error)
		text  string
		want  map[string]string // nil: the text is refused
	}{
		{Hourly, "0", map[string]string{"min": "0"}},
		{Hourly, "45", map[string]string{"min": "45"}},
		{Hourly, "5", nil},
		{Hourly, "", nil},
		{Daily, "00:00", map[string]string{"hour": "0", "min": "0"}},
		{Daily, "23:45", map[string]string{"hour": "23", "min": "45"}},
		{Daily, "24:00", nil},
		{Daily, "-1:00", nil},
		{Daily, "2", nil},
		{Daily, "02:31", nil},
		{Weekly, "Sunday,mon 02:30", map[string]string{"hour": "2", "min": "30", "days": "Monday,Sunday"}},
		{Weekly, "FRIDAY,Fri 02:30", map[string]string{"hour": "2", "min": "30", "days": "Friday"}},
		{Weekly, "Mo 02:30", nil},
		{Weekly, "Monday", nil},
		{Weekly, "Monday, 02:30", nil},
		{Weekly, "Mondayish 02:30", nil},
	} {
		w, err := c.parse(c.text)
		switch {
		case c.want == nil && !errors.Is(err, ErrValue):
			t.Errorf("%q: %v %v, want a refusal", c.text, w, err)
		case c.want != nil && (err != nil || !reflect.DeepEqual(w.keys(), c.want)):
			t.Errorf("%q: %v %v, want %v", c.text, w.keys(), err, c.want)
		}
	}
}

func TestFilter(t *testing.T) {
	for text, want := range map[string]Filter{
		"power-state=halted":    {"power_state", "", "halted"},
		"Other-Config:a=b=c":    {"other_config", "a", "b=c"},
		"name_description=":     {"name_description", "", ""},
		"platform:viridian=yes": {"platform", "viridian", "yes"},
	} {
		if f, err := ParseFilter(text); err != nil || f != want {
			t.Errorf("%q: %+v %v", text, f, err)
		}
	}
	for _, text := range []string{"", "x", "=x"} {
		if _, err := ParseFilter(text); !errors.Is(err, ErrValue) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
