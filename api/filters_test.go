package api

import (
	"reflect"
	"testing"
)

func TestFiltersComeInTwoForms(t *testing.T) {
	for _, raw := range []string{`{"name":["a","b"]}`, `{"name":{"b":true,"a":true,"c":false}}`} {
		f, err := parseFilters(raw, "name", "id")
		if want := (filters{"name": {"a", "b"}}); err != nil || !reflect.DeepEqual(f, want) {
			t.Errorf("%s: got %v %v", raw, f, err)
		}
	}
}

func TestFiltersRefuseWhatNobodyKnows(t *testing.T) {
	for raw, want := range map[string]string{
		`{"nmae":["a"]}`: "invalid filter 'nmae'",
		`["name"]`:       `invalid filter: send JSON such as {"name":{"web":true}}`,
		`{"name":"a"}`:   `invalid filter: send JSON such as {"name":{"web":true}}`,
	} {
		if _, err := parseFilters(raw, "name"); err == nil || err.Error() != want || statusOf(err) != 400 {
			t.Errorf("%s: got %v, want %s", raw, err, want)
		}
	}
}

func TestFiltersMatch(t *testing.T) {
	f := filters{"name": {"we"}, "label": {"a", "b=1"}, "mode": {"global"}, "yes": {"true"}, "both": {"0", "1"}}
	labels := map[string]string{"a": "", "b": "1"}
	for name, ok := range map[string]bool{
		"prefix":           f.prefix("name", "web"),
		"other prefix":     !f.prefix("name", "tweb"),
		"nothing asked":    f.prefix("id", "x") && f.exact("id", "x") && f.labels("other", nil),
		"labels":           f.labels("label", labels),
		"labels in parts":  f.labels("label", map[string]string{"a": "x"}, map[string]string{"b": "1"}),
		"wrong value":      !f.labels("label", map[string]string{"a": "", "b": "2"}),
		"exact":            f.exact("mode", "global") && !f.exact("mode", "glob"),
		"contains":         f.contains("name", "newer"),
		"contains nothing": !f.contains("name", "old"),
	} {
		if !ok {
			t.Error(name)
		}
	}
	if yes, set, err := f.truth("yes"); !yes || !set || err != nil {
		t.Error("truth", yes, set, err)
	}
	if _, _, err := f.truth("both"); err == nil {
		t.Error("true and false together were taken")
	}
}

func FuzzFilters(f *testing.F) {
	f.Add(`{"name":["a"]}`)
	f.Add(`{"name":{"a":true}}`)
	f.Add(`null`)
	f.Add(`{"name":null}`)
	f.Fuzz(func(t *testing.T, raw string) {
		got, err := parseFilters(raw, "name")
		if err != nil {
			if statusOf(err) != 400 {
				t.Fatalf("status %d", statusOf(err))
			}
			return
		}
		for key := range got {
			if key != "name" {
				t.Fatalf("accepted %q", key)
			}
		}
		got.prefix("name", "a")
		got.labels("name", nil)
	})
}
