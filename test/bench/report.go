package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// results is what results.json holds.
type results struct {
	At      time.Time         `json:"at"`
	Runs    int               `json:"runs"`
	Machine machine           `json:"machine"`
	Systems map[string]string `json:"systems"` // versions and settings
	Summary []summary         `json:"summary"`
	Each    []run             `json:"each"`
}

// summary is one scenario with one system, over the runs that did not fail.
type summary struct {
	System   string          `json:"system"`
	Scenario string          `json:"scenario"`
	Runs     int             `json:"runs"`
	Failed   int             `json:"failed"`
	TookMS   spread          `json:"took_ms,omitzero"`
	PausedMS spread          `json:"paused_ms,omitzero"`
	Steps    []stepSummary   `json:"steps,omitempty"`
	Pause    []stepSummary   `json:"pause,omitempty"`
	WholeMS  spread          `json:"whole_ms,omitzero"`
	LateMS   spread          `json:"late_ms"`
	Load1    spread          `json:"load1"`
	CPU      spread          `json:"cpu_pressure_percent"`
	Clients  []clientSummary `json:"clients"`
}

type stepSummary struct {
	Phase string `json:"phase"`
	MS    spread `json:"ms"`
}

type clientSummary struct {
	Client    string         `json:"client"`
	GapMS     spread         `json:"gap_ms"`
	SlowestMS spread         `json:"slowest_ms"`
	CalmMS    spread         `json:"calm_ms"`
	Done      int            `json:"done"`
	Errors    map[string]int `json:"errors,omitempty"` // of all runs together, as are those below
	Acked     int            `json:"acknowledged_rows"`
	Lost      int            `json:"lost_rows"`
	Torn      int            `json:"torn_writes,omitempty"`
	Ratio     float64        `json:"ratio,omitempty"` // median gap of this system over Matriarch's
}

func (res *results) citus(version string) {
	res.Machine.Citus = version
	res.Machine.StandIn = strings.Contains(strings.ToLower(version), "stand")
}

func (res *results) of(system, scenario string) (ok []run, failed int) {
	for _, r := range res.Each {
		switch {
		case r.System != system || r.Scenario != scenario:
		case r.Failed != "":
			failed++
		default:
			ok = append(ok, r)
		}
	}
	return ok, failed
}

func spreadRuns[T any](runs []T, of func(T) float64) spread {
	values := make([]float64, 0, len(runs))
	for _, r := range runs {
		values = append(values, of(r))
	}
	return spreadOf(values)
}

func (res *results) summarise(scs []scenario) {
	for _, sc := range scs {
		own := map[string]float64{}
		for _, system := range slices.Sorted(maps.Keys(res.Systems)) { // Matriarch's name comes first in the alphabet
			runs, failed := res.of(system, sc.Name)
			if len(runs)+failed == 0 {
				continue
			}
			s := summary{
				System: system, Scenario: sc.Name, Runs: len(runs), Failed: failed,
				LateMS: spreadRuns(runs, func(r run) float64 { return r.LateMS }),
				Load1:  spreadRuns(runs, func(r run) float64 { return r.Load.Load1 }),
				CPU:    spreadRuns(runs, func(r run) float64 { return r.Load.CPUPressure }),
			}
			s.switched(sc, runs)
			if sc.strikes() {
				s.WholeMS = spreadRuns(runs, func(r run) float64 { return r.WholeMS })
			}
			for i, k := range append(kinds(), sc.kinds...) {
				if len(runs) == 0 {
					break
				}
				c := summariseClient(k.name, runs, i)
				if system == "matriarch" {
					own[k.name] = c.GapMS.Median
				} else if own[k.name] > 0 {
					c.Ratio = c.GapMS.Median / own[k.name]
				}
				s.Clients = append(s.Clients, c)
			}
			res.Summary = append(res.Summary, s)
		}
	}
}

// switched adds what only planned work has.
func (s *summary) switched(sc scenario, runs []run) {
	if sc.kill != "" || len(runs) == 0 {
		return
	}
	s.TookMS = spreadRuns(runs, func(r run) float64 { return r.TookMS })
	if len(runs[0].Switched.Steps) > 0 {
		s.PausedMS = spreadRuns(runs, func(r run) float64 { return r.Switched.PausedMS })
	}
	s.Steps = summariseSteps(runs, func(r run) []step { return r.Switched.Steps })
	s.Pause = summariseSteps(runs, func(r run) []step { return r.Switched.Pause })
}

// summariseSteps takes their names and order from the first run that has any.
func summariseSteps(runs []run, of func(run) []step) (out []stepSummary) {
	first := slices.IndexFunc(runs, func(r run) bool { return len(of(r)) > 0 })
	if first < 0 {
		return nil
	}
	for _, name := range of(runs[first]) {
		var took []float64
		for _, r := range runs {
			if i := slices.IndexFunc(of(r), func(o step) bool { return o.Phase == name.Phase }); i >= 0 {
				took = append(took, of(r)[i].Took)
			}
		}
		out = append(out, stepSummary{name.Phase, spreadOf(took)})
	}
	return out
}

func summariseClient(name string, runs []run, i int) clientSummary {
	c := clientSummary{
		Client: name, Errors: map[string]int{},
		GapMS:     spreadRuns(runs, func(r run) float64 { return r.Clients[i].GapMS }),
		SlowestMS: spreadRuns(runs, func(r run) float64 { return r.Clients[i].SlowestMS }),
		CalmMS:    spreadRuns(runs, func(r run) float64 { return r.Clients[i].CalmMS }),
	}
	for _, r := range runs {
		one := r.Clients[i]
		c.Done, c.Acked, c.Lost, c.Torn = c.Done+one.Done, c.Acked+one.Acked, c.Lost+one.Lost, c.Torn+one.Torn
		for code, n := range one.Errors {
			c.Errors[code] += n
		}
	}
	return c
}

// table prints everything that a reader needs to judge the figures.
func (res *results) table(scs []scenario) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s, %d CPUs, Linux %s\n%s\nCitus: %s\n", res.At.Format(time.DateTime+" UTC"), res.Machine.CPUs, res.Machine.Kernel, res.Machine.Postgres, res.Machine.Citus)
	if res.Machine.StandIn {
		b.WriteString("NOTE: this is not Citus but its stand-in for tests: no two-phase commit, one copy of a reference table, other plans.\n")
	}
	for _, system := range slices.Sorted(maps.Keys(res.Systems)) {
		fmt.Fprintf(&b, "%s: %s\n", system, res.Systems[system])
	}
	fmt.Fprintf(&b, "Clients enter through the coordinator's primary or, \"via worker\", through the primary of worker group %d; what happens to a worker happens to group %d.\n",
		entryWorker, struckWorker)
	b.WriteString("Milliseconds. gap: longest time between two successes around the event. calm: the same in the 2 s before. slowest: longest operation (median).\n")
	for _, sc := range scs {
		res.tableOf(&b, sc)
	}
	return b.String()
}

func (res *results) tableOf(b *strings.Builder, sc scenario) {
	var all []summary
	for _, s := range res.Summary {
		if s.Scenario == sc.Name {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s\n", strings.ToUpper(sc.Title))
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "client\tsystem\tgap median\tmin\tmax\tslowest\tcalm\tops\tlost\tratio\t  errors")
	for i, k := range append(kinds(), sc.kinds...) {
		for _, s := range all {
			if i >= len(s.Clients) {
				continue
			}
			c, ratio := s.Clients[i], ""
			if c.Ratio > 0 {
				ratio = fmt.Sprintf("%.1f", c.Ratio)
			}
			lost := fmt.Sprint(c.Lost)
			if c.Torn > 0 {
				lost += fmt.Sprintf(" +%d torn", c.Torn)
			}
			fmt.Fprintf(w, "%s\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%d\t%s\t%s\t  %s\n", k.name, s.System, c.GapMS.Median, c.GapMS.Min, c.GapMS.Max, c.SlowestMS.Median, c.CalmMS.Median,
				c.Done, lost, ratio, errorText(c.Errors))
		}
	}
	_ = w.Flush()
	for _, s := range all {
		fmt.Fprintf(b, "%s: %d runs%s, load %.1f to %.1f, CPU pressure %.0f to %.0f %%", s.System, s.Runs, failedText(s.Failed), s.Load1.Min, s.Load1.Max, s.CPU.Min, s.CPU.Max)
		if s.TookMS.N > 0 {
			fmt.Fprintf(b, "; the command took %.0f (%.0f to %.0f)", s.TookMS.Median, s.TookMS.Min, s.TookMS.Max)
		}
		if s.WholeMS.N > 0 {
			fmt.Fprintf(b, "; redundant again after %.1f s (%.1f to %.1f)%s", s.WholeMS.Median/1000, s.WholeMS.Min/1000, s.WholeMS.Max/1000, fromStart(sc))
		}
		if s.LateMS.Max > 2000 {
			fmt.Fprintf(b, "; last acknowledged row readable %.1f s after the formation was whole", s.LateMS.Max/1000)
		}
		b.WriteString("\n")
		if len(s.Steps) > 0 {
			fmt.Fprintf(b, "  phases, median (max): %s; writes paused %.0f (%.0f)\n", stepsText(s.Steps), s.PausedMS.Median, s.PausedMS.Max)
		}
		if len(s.Pause) > 0 {
			fmt.Fprintf(b, "  the pause of Citus, median (max): %s\n", stepsText(s.Pause))
		}
	}
}

func fromStart(sc scenario) string {
	if sc.kill == everything {
		return " from the start of the killed node"
	}
	return ""
}

func failedText(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" and %d that FAILED", n)
}

func stepsText(steps []stepSummary) string {
	var out []string
	for _, s := range steps {
		out = append(out, fmt.Sprintf("%s %.0f (%.0f)", s.Phase, s.MS.Median, s.MS.Max))
	}
	return strings.Join(out, ", ")
}

func errorText(errs map[string]int) string {
	if len(errs) == 0 {
		return "none"
	}
	var out []string
	for _, code := range slices.Sorted(maps.Keys(errs)) {
		out = append(out, fmt.Sprintf("%d x %s", errs[code], code))
	}
	return strings.Join(out, ", ")
}

// line is the progress.
func (r run) line(sc scenario) string {
	lost, errs := 0, 0
	for _, c := range r.Clients {
		lost += c.Lost
		for _, n := range c.Errors {
			errs += n
		}
	}
	return fmt.Sprintf("%s, %s, run %d (%s): gap of inserts %.0f ms via coordinator, %.0f ms via worker; %d errors, %d lost; load %.1f", r.System, sc.Title, r.N, r.Victim,
		r.Clients[0].GapMS, r.Clients[1].GapMS, errs, lost, r.Load.Load1)
}
