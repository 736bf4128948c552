package metrics

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"example.org/socketproxy/internal/printable"
)

// Text is all that is known of instances, in the text format of Prometheus, version 0.0.4.
func Text(instances []Instance) string {
	var text strings.Builder
	for _, m := range All {
		headed := false
		for _, i := range instances {
			for _, s := range m.Of(i) {
				if !headed {
					fmt.Fprintf(&text, "# HELP %s %s\n# TYPE %s %s\n", m.Name, m.Help, m.Name, m.Kind)
					headed = true
				}
				m.write(&text, i, s)
			}
		}
	}
	return text.String()
}

func (m *Metric) write(text *strings.Builder, i Instance, s Sample) {
	line := func(suffix, label, value, number string) {
		fmt.Fprintf(text, `%s%s{%s="%s"`, m.Name, suffix, LabelName, escape(i.Instance.Name))
		if label != "" {
			fmt.Fprintf(text, `,%s="%s"`, label, escape(value))
		}
		fmt.Fprintf(text, "} %s\n", number)
	}
	if m.Kind != Histogram {
		line("", m.Label, s.Label, format(s.Value))
		return
	}
	count := uint64(0)
	for _, b := range s.Buckets {
		count = b.Count
		line("_bucket", "le", format(b.Limit), strconv.FormatUint(count, 10))
	}
	line("_sum", "", "", format(s.Value))
	line("_count", "", "", strconv.FormatUint(count, 10))
}

func format(number float64) string {
	if math.IsInf(number, 1) {
		return "+Inf"
	}
	return strconv.FormatFloat(number, 'g', -1, 64)
}

// escape makes what an instance says a label's value, without line ends and other characters that a terminal would obey.
func escape(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(printable.Line(text))
}
