package main

import (
	"encoding/xml"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestPercentileIsTheNearestRank(t *testing.T) {
	var r recorder
	for i := 100; i >= 1; i-- {
		r.add(time.Duration(i))
	}
	for p, want := range map[float64]time.Duration{50: 50, 99: 99, 99.5: 100, 100: 100, 0: 1} {
		if got := r.percentile(p); got != want {
			t.Errorf("p%v is %d, want %d", p, got, want)
		}
	}
	var none *recorder
	if got := none.percentile(50); got != 0 {
		t.Errorf("p50 of nothing is %d", got)
	}
}

func TestMedianLeavesFailuresOut(t *testing.T) {
	nan := math.NaN()
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3, 1, 2}, 2},
		{[]float64{4, 1, 2, 3}, 2.5},
		{[]float64{nan, 7, nan}, 7},
	} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.values, got, c.want)
		}
	}
	if got := median([]float64{nan}); !math.IsNaN(got) {
		t.Errorf("median of a failure is %v", got)
	}
}

// The machine became twice as slow in the second round, and in the third one proxy failed.
func TestRatioIsTakenWithinRounds(t *testing.T) {
	middle, low, high := ratio([]float64{9, 18, 9}, []float64{10, 20, math.NaN()})
	if middle != 0.9 || low != 0.9 || high != 0.9 {
		t.Errorf("got %v (%v–%v), want 0.9", middle, low, high)
	}
}

// A report of one workload, with a figure of each proxy.
func reportOf(m metric, figures map[string]float64) (report, workload) {
	w := workload{name: "w", metrics: []metric{m}}
	r := report{
		workloads: []workload{w},
		proxies: []*proxy{{name: "proxyd", kind: ours}, {name: "a", kind: peer}, {name: "b", kind: peer},
			{name: "floor", kind: extra}},
		results: results{},
	}
	for _, p := range r.proxies {
		if figure, ok := figures[p.name]; ok {
			r.results.add(w, p, []float64{figure})
		}
	}
	return r, w
}

func TestVerdict(t *testing.T) {
	cpu := metric{name: "CPU", goals: []goal{{bestPeer, 0.9}, {floor, 1.1}}}
	rate := metric{name: "throughput", higher: true, goals: []goal{{bestPeer, 0.95}}}
	pipes := metric{name: "pipes", goals: []goal{{itself, 0}}}
	for name, c := range map[string]struct {
		metric  metric
		figures map[string]float64
		want    string
	}{
		"within both bounds":              {cpu, map[string]float64{"proxyd": 8, "a": 10, "b": 12, "floor": 8}, "yes"},
		"beyond the best of the peers":    {cpu, map[string]float64{"proxyd": 9.5, "a": 12, "b": 10, "floor": 9}, "no: CPU 0.95 of b"},
		"beyond the floor":                {cpu, map[string]float64{"proxyd": 8, "a": 10, "b": 12, "floor": 5}, "no: CPU 1.60 of floor"},
		"no floor given":                  {cpu, map[string]float64{"proxyd": 8, "a": 10}, "yes"},
		"nothing to compare with":         {cpu, map[string]float64{"proxyd": 8}, nothing},
		"the measurement failed":          {cpu, map[string]float64{"proxyd": math.NaN(), "a": 10}, "not measured"},
		"more is better, and it is more":  {rate, map[string]float64{"proxyd": 11, "a": 10, "b": 5}, "yes"},
		"more is better, and it is less":  {rate, map[string]float64{"proxyd": 8, "a": 5, "b": 10}, "no: throughput 0.80 of b"},
		"none allowed, and there is none": {pipes, map[string]float64{"proxyd": 0}, "yes"},
		"none allowed, and there is one":  {pipes, map[string]float64{"proxyd": 1}, "no: pipes 1.00"},
	} {
		t.Run(name, func(t *testing.T) {
			r, w := reportOf(c.metric, c.figures)
			if got := r.verdict(w, w.metrics); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// A row with a cell too many or too few would make Markdown drop or shift the rest.
func TestTablesHaveEqualRows(t *testing.T) {
	r, _ := reportOf(metric{}, nil)
	r.workloads = workloads
	for _, w := range workloads {
		for _, p := range r.proxies {
			r.results.add(w, p, make([]float64, len(w.metrics)))
		}
	}
	var out strings.Builder
	r.write(&out)
	columns := 0
	for line := range strings.Lines(out.String()) {
		switch n := strings.Count(line, "|"); {
		case n == 0:
			columns = 0
		case columns == 0:
			columns = n
		case n != columns:
			t.Errorf("%d bars in a table of %d: %s", n, columns, line)
		}
	}
	for _, w := range workloads {
		if !strings.Contains(out.String(), "| "+w.name+" |") {
			t.Errorf("the report has no row for %s", w.name)
		}
	}
}

func TestFiguresHaveThreeDigits(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 8000: "8000", 0.5694: "0.569", 48.123: "48.1", 769.4: "769", 28884.6: "28885"} {
		if got := formatFigure(v); got != want {
			t.Errorf("%v is printed as %s, want %s", v, got, want)
		}
	}
}

func TestPublishedTableHasTheRangeOfTheRuns(t *testing.T) {
	w, dir := workloads[0], t.TempDir()
	var paths []string
	for i, cpu := range []float64{9, 11, 10} {
		r := report{workloads: []workload{w}, results: results{}, proxies: []*proxy{
			{name: "proxyd", kind: ours, version: "1"}, {name: "a", kind: peer, version: "2"},
		}}
		r.results.add(w, r.proxies[0], []float64{cpu, 2, 50})
		r.results.add(w, r.proxies[0], nil) // a failure
		r.results.add(w, r.proxies[1], []float64{10, 4, 50})
		paths = append(paths, filepath.Join(dir, strconv.Itoa(i)))
		if err := r.save(paths[i]); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	if err := publish(paths, &out); err != nil {
		t.Fatal(err)
	}
	if want := "| bulk-1, ms/GB | 10 | 10 | 0.90–1.10 | 0.50–0.50 | – |\n"; !strings.Contains(out.String(), want) {
		t.Errorf("got\n%s\nwant in it\n%s", out.String(), want)
	}
	var picture strings.Builder
	if err := publishChart(paths, &picture); err != nil {
		t.Fatal(err)
	}
	var svg struct {
		Bars []struct {
			Width float64 `xml:"width,attr"`
		} `xml:"rect"`
	}
	if err := xml.Unmarshal([]byte(strings.Replace(picture.String(), `width="100%"`, "", 1)), &svg); err != nil {
		t.Fatal(err)
	}
	// The ground, two boxes of the legend, and a bar for each proxy, which are equal in the median.
	if n := len(svg.Bars); n != 5 || svg.Bars[3].Width != svg.Bars[4].Width {
		t.Errorf("%+v", svg.Bars)
	}
}
