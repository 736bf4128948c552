package timespan_test

import (
	"fmt"
	"time"

	"example.org/socketproxy/internal/timespan"
)

func Example() {
	for _, text := range []string{"90", "1.5h", "5min 20s", "infinity", "5 parsecs"} {
		span, err := timespan.Parse(text)
		if err != nil {
			fmt.Printf("--exit-idle-time=%s: %v\n", text, err)
			continue
		}
		fmt.Println(timespan.Format(span))
	}
	// Output:
	// 1min 30s
	// 1h 30min
	// 5min 20s
	// infinity
	// --exit-idle-time=5 parsecs: unknown time unit "parsecs"
}

func ExampleFormatAccuracy() {
	age := 2*time.Minute + 1234567*time.Microsecond
	fmt.Println(timespan.FormatAccuracy(age, time.Millisecond))
	fmt.Println(timespan.FormatAccuracy(age, time.Second))
	// Output:
	// 2min 1.234s
	// 2min 1s
}
