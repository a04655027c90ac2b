package monitoring

import (
	_ "embed" // the files below
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

//go:embed alerts.yml
var alertsFile []byte

//go:embed dashboard.json
var dashboardFile []byte

// Alert is one rule.
type Alert struct {
	Name        string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	For         string            `yaml:"for"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

// Alerts reads the rules.
func Alerts() ([]Alert, error) {
	var file struct {
		Groups []struct {
			Name  string  `yaml:"name"`
			Rules []Alert `yaml:"rules"`
		} `yaml:"groups"`
	}
	dec := yaml.NewDecoder(strings.NewReader(string(alertsFile)))
	dec.KnownFields(true)
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("alerts.yml: %w", err)
	}
	var out []Alert
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	for _, a := range out {
		if a.For == "" || strings.HasSuffix(a.For, "d") {
			continue
		}
		if _, err := time.ParseDuration(a.For); err != nil {
			return nil, fmt.Errorf("alerts.yml: %s: %w", a.Name, err)
		}
	}
	return out, nil
}

// DashboardQueries are all queries of the dashboard, by what they are for.
func DashboardQueries() (map[string]string, error) {
	var file any
	if err := json.Unmarshal(dashboardFile, &file); err != nil {
		return nil, fmt.Errorf("dashboard.json: %w", err)
	}
	out := map[string]string{}
	collect(file, "", out)
	return out, nil
}

// collect finds every "expr", and the metric that a variable asks for, wherever they are.
func collect(v any, title string, out map[string]string) {
	switch v := v.(type) {
	case []any:
		for _, x := range v {
			collect(x, title, out)
		}
	case map[string]any:
		for _, key := range []string{"title", "name"} {
			if s, ok := v[key].(string); ok {
				title = s
			}
		}
		for key, x := range v {
			switch s, ok := x.(string); {
			case ok && key == "expr":
				out[fmt.Sprintf("%s %v", title, v["refId"])] = s
			case ok && key == "definition":
				out["variable "+title] = variable.ReplaceAllString(s, "$1")
			default:
				collect(x, title, out)
			}
		}
	}
}

var variable = regexp.MustCompile(`^label_values\((.*), (\w+)\)$`)

// Use is a metric that a query reads, with the labels that it asks of it.
type Use struct {
	Metric string
	Labels []string
}

var (
	quoted   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	window   = regexp.MustCompile(`\[[^\]]*\]`)
	grouping = regexp.MustCompile(`\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)`)
	word     = regexp.MustCompile(`[a-zA-Z_:][a-zA-Z0-9_:]*(\s*[({])?`)
	matcher  = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)`)
)

// Uses finds the metrics in a query of Prometheus' language, and the labels that it selects, groups or joins by. It knows as much of the
// language as alerts and dashboards need: promtool knows the rest.
func Uses(query string) []Use {
	query = quoted.ReplaceAllString(query, `""`)
	query = window.ReplaceAllString(query, "")
	var by []string
	query = grouping.ReplaceAllStringFunc(query, func(s string) string {
		for l := range strings.SplitSeq(grouping.FindStringSubmatch(s)[2], ",") {
			by = append(by, strings.TrimSpace(l))
		}
		return " "
	})
	var out []Use
	for rest := query; ; {
		at := word.FindStringIndex(rest)
		if at == nil {
			break
		}
		name := rest[at[0]:at[1]]
		before := rest[:at[0]]
		rest = rest[at[1]:]
		switch {
		case strings.HasSuffix(name, "("), slices.Contains([]string{"and", "or", "unless", "bool", "offset"}, name):
			continue
		case before != "" && before[len(before)-1] >= '0' && before[len(before)-1] <= '9': // 5m, 1e9
			continue
		}
		use := Use{Metric: strings.TrimRight(name, " {"), Labels: slices.Clone(by)}
		if strings.HasSuffix(name, "{") {
			inside, after, _ := strings.Cut(rest, "}")
			for _, m := range matcher.FindAllStringSubmatch(inside, -1) {
				use.Labels = append(use.Labels, m[1])
			}
			rest = after
		}
		slices.Sort(use.Labels)
		use.Labels = slices.Compact(use.Labels)
		out = append(out, use)
	}
	return out
}

// added is what Prometheus adds itself: metrics by name, labels to every metric.
var added = struct {
	metrics []string
	labels  []string
}{[]string{"up"}, []string{"job", "instance"}}

// Missing says what a query uses and the nodes do not export. exported holds, by metric, the sets of labels that it was seen with.
func Missing(query string, exported map[string][][]string) []string {
	var out []string
	uses := Uses(query)
	if len(uses) == 0 {
		out = append(out, "it reads no metric")
	}
	for _, u := range uses {
		if slices.Contains(added.metrics, u.Metric) {
			continue
		}
		seen, ok := exported[u.Metric]
		if !ok {
			out = append(out, "no node exports "+u.Metric)
			continue
		}
		for _, l := range u.Labels {
			if !slices.Contains(added.labels, l) && !slices.ContainsFunc(seen, func(labels []string) bool { return slices.Contains(labels, l) }) {
				out = append(out, u.Metric+" has no label "+l)
			}
		}
	}
	return out
}

// Exported reads what a node answers at /metrics.
func Exported(text string, into map[string][][]string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, _, _ := strings.Cut(line, " ")
		name, inside, _ := strings.Cut(name, "{")
		if inside != "" {
			_, inside, _ = strings.Cut(line, "{")
			inside = inside[:strings.LastIndex(inside, "}")]
		}
		var labels []string
		for _, m := range matcher.FindAllStringSubmatch(quoted.ReplaceAllString(inside, `""`), -1) {
			labels = append(labels, m[1])
		}
		into[name] = append(into[name], labels)
	}
}
