package api

import (
	"encoding/json"
	"slices"
	"strings"
)

// filters narrow a list: an object must match every key, by any of its values.
type filters map[string][]string

// filters reads the filters parameter, in both forms that clients send, and refuses keys that are not accepted.
func (r *request) filters(accepted ...string) (filters, error) {
	return parseFilters(r.URL.Query().Get("filters"), accepted...)
}

func parseFilters(raw string, accepted ...string) (filters, error) {
	f := filters{}
	if raw == "" {
		return f, nil
	}
	if len(raw) > filterBytesMax {
		return nil, invalid("invalid filter: longer than %d bytes", filterBytesMax)
	}
	var sets map[string]map[string]bool
	if err := json.Unmarshal([]byte(raw), &sets); err == nil {
		for key, set := range sets {
			f[key] = make([]string, 0, len(set))
			for value, on := range set {
				if on {
					f[key] = append(f[key], value)
				}
			}
			slices.Sort(f[key])
		}
	} else if err := json.Unmarshal([]byte(raw), (*map[string][]string)(&f)); err != nil {
		return nil, invalid("invalid filter: send JSON such as {\"name\":{\"web\":true}}")
	}
	for key := range f {
		if !slices.Contains(accepted, key) {
			return nil, invalid("invalid filter '%s'", key)
		}
	}
	return f, nil
}

// exact says whether value is among those asked for under key, or nothing was.
func (f filters) exact(key, value string) bool {
	return len(f[key]) == 0 || slices.Contains(f[key], value)
}

// prefix says whether value begins with one of those asked for under key, or nothing was.
func (f filters) prefix(key, value string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(p string) bool { return strings.HasPrefix(value, p) })
}

// labels says whether every label asked for under key, with its value where one is given, is in one of sets.
func (f filters) labels(key string, sets ...map[string]string) bool {
	for _, want := range f[key] {
		name, value, withValue := strings.Cut(want, "=")
		if !slices.ContainsFunc(sets, func(set map[string]string) bool {
			got, ok := set[name]
			return ok && (!withValue || got == value)
		}) {
			return false
		}
	}
	return true
}

// truth reads a yes-or-no filter; set is false when it was not given.
func (f filters) truth(key string) (value, set bool, err error) {
	values := f[key]
	if len(values) == 0 {
		return false, false, nil
	}
	for i, v := range values {
		var yes bool
		switch strings.ToLower(v) {
		case "1", "true":
			yes = true
		case "0", "false":
		default:
			return false, false, invalid("invalid filter '%s=%s': use true or false", key, v)
		}
		if i > 0 && yes != value {
			return false, false, invalid("invalid filter '%s': true and false together match nothing", key)
		}
		value = yes
	}
	return value, true, nil
}

// contains says whether value has one of those asked for under key as a part, or nothing was asked.
func (f filters) contains(key, value string) bool {
	return len(f[key]) == 0 || slices.ContainsFunc(f[key], func(part string) bool { return strings.Contains(value, part) })
}
