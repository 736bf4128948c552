package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// chart draws, for each workload that keeps a proxy busy, the CPU time of each proxy in that of the best peer: a bar for the median
// over all rounds of all runs, and a line between their quartiles.
func chart(runs []report) string {
	const (
		left, width, right = 130, 420, 60
		bar, gap, group    = 9, 2, 14
		longest            = 3.0 // times the best peer; longer bars are cut
	)
	colours := []string{"#1f6fb2", "#c9a227", "#8c8c8c", "#b85c38", "#5b8c5a"}
	first := runs[0]
	var rows strings.Builder
	y := 40
	scale := func(ratio float64) float64 { return math.Min(ratio, longest) / longest * width }
	for _, w := range first.workloads {
		if !w.isTraffic() {
			continue
		}
		cpu := w.metrics[cpuMetric]
		fmt.Fprintf(&rows, `<text x="%d" y="%d" text-anchor="end">%s</text>`+"\n", left-8, y+bar, html.EscapeString(w.name))
		for i, p := range first.proxies {
			var ratios []float64
			for _, r := range runs {
				if best := r.results.bestPeer(w, cpu, r.proxies); best != nil {
					own, others := r.results.of(w, cpu, p), r.results.of(w, cpu, best)
					for round := range min(len(own), len(others)) {
						ratios = append(ratios, own[round]/others[round])
					}
				}
			}
			middle := median(ratios)
			if math.IsNaN(middle) {
				continue
			}
			centre := float64(y) + bar/2.0
			fmt.Fprintf(&rows, `<rect x="%d" y="%d" width="%.1f" height="%d" fill="%s"/>`+"\n", left, y, scale(middle), bar, colours[i%len(colours)])
			fmt.Fprintf(&rows, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#222"/>`+"\n",
				left+scale(quantile(ratios, 0.25)), centre, left+scale(quantile(ratios, 0.75)), centre)
			fmt.Fprintf(&rows, `<text x="%.1f" y="%d" font-size="9">%.2f</text>`+"\n", left+scale(max(middle, quantile(ratios, 0.75)))+4, y+bar-1, middle)
			y += bar + gap
		}
		y += group
	}
	var svg strings.Builder
	fmt.Fprintf(&svg, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n"+
		`<rect width="100%%" height="100%%" fill="#fff"/>`+"\n", left+width+right, y)
	x := left
	for i, p := range first.proxies {
		fmt.Fprintf(&svg, `<rect x="%d" y="12" width="10" height="10" fill="%s"/><text x="%d" y="21">%s</text>`+"\n",
			x, colours[i%len(colours)], x+14, html.EscapeString(p.name))
		x += 40 + 7*len(p.name) // about the width of the text
	}
	fmt.Fprintf(&svg, `<line x1="%.1f" y1="32" x2="%.1f" y2="%d" stroke="#bbb" stroke-dasharray="3 3"/>`+"\n", left+scale(1), left+scale(1), y)
	return svg.String() + rows.String() + "</svg>\n"
}
