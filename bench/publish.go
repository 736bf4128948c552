package main

import (
	"encoding/csv"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
)

// A saved run is CSV. A row of a proxy is "proxy", its name, its kind and its version; a row of figures is the workload, the
// metric, the proxy, and its figure of each round.
const proxyRow = "proxy"

func (r report) save(path string) error {
	var rows [][]string
	for _, p := range r.proxies {
		rows = append(rows, []string{proxyRow, p.name, strconv.Itoa(int(p.kind)), p.version})
	}
	for _, w := range r.workloads {
		for _, m := range w.metrics {
			for _, p := range r.proxies {
				row := []string{w.name, m.name, p.name}
				for _, v := range r.results.of(w, m, p) {
					row = append(row, strconv.FormatFloat(v, 'g', 6, 64))
				}
				rows = append(rows, row)
			}
		}
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := csv.NewWriter(file).WriteAll(rows); err != nil {
		file.Close()
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return file.Close()
}

// loadRun is the inverse of save.
func loadRun(path string) (report, error) {
	r := report{results: results{}}
	file, err := os.Open(path)
	if err != nil {
		return r, err
	}
	defer file.Close()
	rows := csv.NewReader(file)
	rows.FieldsPerRecord = -1
	records, err := rows.ReadAll()
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	for line, record := range records {
		if len(record) < 3 {
			return r, fmt.Errorf("%s: row %d has %d cells", path, line+1, len(record))
		}
		if record[0] == proxyRow {
			k, err := strconv.Atoi(record[2])
			if err != nil || len(record) != 4 {
				return r, fmt.Errorf("%s: row %d is not a proxy", path, line+1)
			}
			r.proxies = append(r.proxies, &proxy{name: record[1], kind: kind(k), version: record[3]})
			continue
		}
		key := resultKey{record[0], record[1], record[2]}
		for _, cell := range record[3:] {
			v, err := strconv.ParseFloat(cell, 64)
			if err != nil {
				return r, fmt.Errorf("%s: row %d: %w", path, line+1, err)
			}
			r.results[key] = append(r.results[key], v)
		}
	}
	for _, w := range workloads {
		if slices.ContainsFunc(r.proxies, func(p *proxy) bool { return len(r.results.of(w, w.metrics[0], p)) > 0 }) {
			r.workloads = append(r.workloads, w)
		}
	}
	if r.subject() == nil || len(r.workloads) == 0 {
		return r, fmt.Errorf("%s: no run of proxyd", path)
	}
	return r, nil
}

func loadRuns(paths []string) (runs []report, err error) {
	for _, path := range paths {
		r, err := loadRun(path)
		if err != nil {
			return nil, err
		}
		runs = append(runs, r)
	}
	return runs, nil
}

// publishChart writes the same as a picture, an SVG.
func publishChart(paths []string, out io.Writer) error {
	runs, err := loadRuns(paths)
	if err == nil {
		_, err = io.WriteString(out, chart(runs))
	}
	return err
}

// publish writes one table over saved runs: the median of their medians, and the range of their ratios.
func publish(paths []string, out io.Writer) error {
	runs, err := loadRuns(paths)
	if err != nil {
		return err
	}
	first := runs[0]
	head := []string{"workload"}
	for _, p := range first.proxies {
		fmt.Fprintf(out, "- %s: %s\n", p.name, p.version)
		head = append(head, p.name)
	}
	traffic := table{append(slices.Clone(head), "CPU / best peer", "throughput / best peer", "p99 / best peer")}
	others := table{slices.Clone(head)}
	for _, w := range first.workloads {
		if w.isTraffic() {
			row := append([]string{w.name + ", " + w.metrics[cpuMetric].unit}, overRuns(runs, w, w.metrics[cpuMetric])...)
			for _, i := range []int{cpuMetric, rateMetric, p99Metric} {
				if i < len(w.metrics) {
					row = append(row, rangeToBestPeer(runs, w, w.metrics[i]))
				} else {
					row = append(row, nothing)
				}
			}
			traffic = append(traffic, row)
			continue
		}
		for _, m := range w.metrics {
			others = append(others, append([]string{w.name + ": " + m.name + ", " + m.unit}, overRuns(runs, w, m)...))
		}
	}
	traffic.write(out)
	others.write(out)
	return nil
}

// overRuns has the median of the runs for each proxy.
func overRuns(runs []report, w workload, m metric) []string {
	var cells []string
	for _, p := range runs[0].proxies {
		var medians []float64
		for _, r := range runs {
			medians = append(medians, median(r.results.of(w, m, p)))
		}
		cells = append(cells, formatFigure(median(medians)))
	}
	return cells
}

// rangeToBestPeer says between which bounds the ratio of proxyd to the best peer lay. Each run has its own best peer.
func rangeToBestPeer(runs []report, w workload, m metric) string {
	low, high := math.Inf(1), math.Inf(-1)
	for _, r := range runs {
		best := r.results.bestPeer(w, m, r.proxies)
		if best == nil {
			return nothing
		}
		middle, _, _ := ratio(r.results.of(w, m, r.subject()), r.results.of(w, m, best))
		if math.IsNaN(middle) {
			return nothing
		}
		low, high = min(low, middle), max(high, middle)
	}
	return fmt.Sprintf("%.2f–%.2f", low, high)
}
