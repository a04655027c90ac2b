package main

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"
)

// Sizes in pixels. Latency is logarithmic from 1 ms to 100 s.
const (
	laneHeight, laneGap      = 64, 8
	panelWidth, panelGap     = 640, 40
	leftMargin, topMargin    = 236, 74
	decades                  = 5
	shownBefore, shownAfter  = 500 * time.Millisecond, 500 * time.Millisecond
	leastShown               = time.Second
	bottomMargin, rightBlank = 56, 24
)

type svgLane struct {
	Name        string
	Y           int
	Done, Wrong string // paths: a line from beginning to end of each operation, at the height of its latency
	Gap         string
}

type svgPanel struct {
	X            int
	Title        string
	Lanes        []svgLane
	Seen         float64 // width of the time that was recorded
	Event, Ended float64
	Ticks        []svgTick
}

type svgTick struct {
	At   float64
	Text string
}

// drawScenario writes NAME.svg: one panel a system, of the run whose inserts through the coordinator had the median gap.
func drawScenario(out string, sc scenario, res *results) error {
	var shown []run
	for _, system := range slices.Sorted(maps.Keys(res.Systems)) {
		if runs, _ := res.of(system, sc.Name); len(runs) > 0 {
			slices.SortFunc(runs, func(a, b run) int { return int(a.Clients[0].GapMS - b.Clients[0].GapMS) })
			shown = append(shown, runs[(len(runs)-1)/2])
		}
	}
	if len(shown) == 0 {
		return nil
	}
	var panels []svgPanel
	for i, r := range shown {
		panels = append(panels, panel(r, sc, leftMargin+i*(panelWidth+panelGap), timeShown(shown)))
	}
	var b strings.Builder
	lanes := len(panels[0].Lanes)
	err := svg.Execute(&b, map[string]any{
		"Title": sc.Title, "Panels": panels, "Lanes": panels[0].Lanes, "H": laneHeight, "PW": panelWidth, "Top": topMargin, "Bottom": topMargin + lanes*(laneHeight+laneGap) - laneGap,
		"Width": leftMargin + len(panels)*(panelWidth+panelGap) - panelGap + rightBlank, "Height": topMargin + lanes*(laneHeight+laneGap) + bottomMargin,
		"Left": leftMargin - 8, "Grid": gridLines(), "Citus": res.Machine.Citus, "StandIn": res.Machine.StandIn,
	})
	if err != nil {
		return fmt.Errorf("picture: %w", err)
	}
	if err := os.WriteFile(filepath.Join(out, sc.Name+".svg"), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("picture: %w", err)
	}
	return nil
}

// timeShown reaches to the end of the longest gap of all, so that the panels have one scale.
func timeShown(runs []run) time.Duration {
	longest := leastShown
	for _, r := range runs {
		for _, samples := range r.samples {
			from, gap := gapAt(samples, r.At, r.At.Add(r.shown))
			longest = max(longest, from.Add(gap).Sub(r.At))
		}
		longest = max(longest, min(time.Duration(r.TookMS*float64(time.Millisecond)), r.shown))
	}
	return longest + shownAfter
}

// gapAt is longestGap with its beginning.
func gapAt(samples []sample, from, to time.Time) (time.Time, time.Duration) {
	gap := longestGap(samples, from, to)
	last := from
	for _, s := range samples {
		if s.code != "" {
			continue
		}
		if s.to.After(from) && s.to.Sub(last) == gap {
			return last, gap
		}
		last = s.to
	}
	return last, gap
}

func panel(r run, sc scenario, x int, until time.Duration) svgPanel {
	scale := float64(panelWidth) / (until + shownBefore).Seconds()
	at := func(t time.Time) float64 { return float64(x) + (t.Sub(r.At)+shownBefore).Seconds()*scale }
	p := svgPanel{X: x, Title: fmt.Sprintf("%s, run %d", r.System, r.N), Event: at(r.At), Seen: min(panelWidth, at(r.At.Add(r.shown))-float64(x))}
	if sc.kill == "" {
		p.Ended = at(r.At.Add(time.Duration(r.TookMS * float64(time.Millisecond))))
	}
	p.Ticks = ticks(x, scale, until)
	for i, k := range append(kinds(), sc.kinds...) {
		l := svgLane{Name: k.name, Y: topMargin + i*(laneHeight+laneGap)}
		var done, wrong strings.Builder
		for _, s := range r.samples[i] {
			if s.to.Before(r.At.Add(-shownBefore)) || s.to.After(r.At.Add(until)) {
				continue
			}
			path := &done
			if s.code != "" {
				path = &wrong
			}
			from, to, y := max(at(s.from), float64(x)), at(s.to), height(l.Y, s.to.Sub(s.from))
			fmt.Fprintf(path, "M%.1f %.1fH%.1f", from, y, to)
		}
		l.Done, l.Wrong = done.String(), wrong.String()
		l.Gap = fmt.Sprintf("%.0f ms", r.Clients[i].GapMS)
		if n := total(r.Clients[i].Errors); n > 0 {
			l.Gap += fmt.Sprintf(", %d errors", n)
		}
		p.Lanes = append(p.Lanes, l)
	}
	return p
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// height is the y of a latency in a lane.
func height(top int, d time.Duration) float64 {
	share := math.Log10(max(1, ms(d))) / decades
	return float64(top+laneHeight) - min(1, share)*laneHeight
}

// ticks are at round seconds, not too many.
func ticks(x int, scale float64, until time.Duration) []svgTick {
	every := 0.1
	for _, e := range []float64{0.2, 0.5, 1, 2, 5, 10, 20, 60} {
		if until.Seconds()/every > 8 {
			every = e
		}
	}
	var out []svgTick
	for i := 0; float64(i)*every <= until.Seconds(); i++ {
		s := float64(i) * every
		out = append(out, svgTick{float64(x) + (s+shownBefore.Seconds())*scale, fmt.Sprintf("%.4g s", s)})
	}
	return out
}

type gridLine struct {
	DY   float64
	Text string
}

func gridLines() []gridLine {
	return []gridLine{{height(0, 10*time.Millisecond), "10 ms"}, {height(0, time.Second), "1 s"}}
}

var svg = template.Must(template.New("svg").Funcs(template.FuncMap{
	"add": func(a, b int) int { return a + b },
	"at":  func(y int, dy float64) float64 { return float64(y) + dy },
}).Parse(`<svg xmlns="http://www.w3.org/2000/svg" width="{{.Width}}" height="{{.Height}}" viewBox="0 0 {{.Width}} {{.Height}}" font-family="sans-serif" font-size="12" fill="#222">
<rect width="100%" height="100%" fill="#fff"/>
<text x="16" y="26" font-size="17" font-weight="bold">{{.Title}}</text>
<text x="16" y="46" fill="#666">Each operation is a line from its beginning to its end, at the height of its latency (logarithmic).{{if .StandIn}} Not Citus but its stand-in.{{end}}</text>
{{- range $l := .Lanes}}
<text x="{{$.Left}}" y="{{add $l.Y 13}}" text-anchor="end">{{$l.Name}}</text>
{{- range $g := $.Grid}}
<text x="{{$.Left}}" y="{{at $l.Y $g.DY}}" text-anchor="end" font-size="9" fill="#999" dy="3">{{$g.Text}}</text>
{{- end}}{{end}}
{{- range $p := .Panels}}
<text x="{{$p.X}}" y="{{add $.Top -8}}" font-weight="bold">{{$p.Title}}</text>
{{- range $l := $p.Lanes}}
<rect x="{{$p.X}}" y="{{$l.Y}}" width="{{printf "%.1f" $p.Seen}}" height="{{$.H}}" fill="#f4f6f8"/>
{{- range $g := $.Grid}}
<path d="M{{$p.X}} {{at $l.Y $g.DY}}h{{printf "%.1f" $p.Seen}}" stroke="#dde2e7" fill="none"/>
{{- end}}
<path d="{{$l.Done}}" stroke="#1f6fb4" stroke-width="2" stroke-linecap="round" stroke-opacity="0.75" fill="none"/>
<path d="{{$l.Wrong}}" stroke="#d02a2a" stroke-width="2.5" stroke-linecap="round" fill="none"/>
<text x="{{add $p.X $.PW}}" y="{{add $l.Y 12}}" dx="-5" text-anchor="end" font-size="11">{{$l.Gap}}</text>
{{- end}}
<path d="M{{printf "%.1f" $p.Event}} {{add $.Top -4}}V{{$.Bottom}}" stroke="#222" stroke-dasharray="4 3"/>
{{- if $p.Ended}}
<path d="M{{printf "%.1f" $p.Ended}} {{add $.Top -4}}V{{$.Bottom}}" stroke="#888" stroke-dasharray="2 3"/>
{{- end}}
{{- range $t := $p.Ticks}}
<text x="{{printf "%.1f" $t.At}}" y="{{add $.Bottom 16}}" text-anchor="middle" fill="#666">{{$t.Text}}</text>
{{- end}}
{{- end}}
<text x="{{add .Left 8}}" y="{{add .Bottom 36}}" fill="#666">Time from the event (dashed). Dotted: the command has returned. Red: errors.</text>
<text x="{{add .Left 8}}" y="{{add .Bottom 52}}" fill="#666">The figure in a lane is its longest time between two successes.</text>
</svg>
`))
