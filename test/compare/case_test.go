package compare

import (
	"os"
	"testing"

	"example.org/socketproxy/internal/testenv"
)

// A theme is cases about one thing, in a file of its own.
type theme struct {
	name  string
	cases []testCase
}

// A testCase is a promise that a stream proxy keeps or breaks. run fails t where it breaks it.
type testCase struct {
	promise string
	run     func(t testing.TB, p *proxy)
}

// themes is in the order of the table.
var themes = []theme{
	integrity,
	halfClose,
	resets,
	stalls,
	backends,
	limits,
	leaks,
	stopping,
	tcpOptions,
	settings,
	proxyHeaders,
	lateBackends,
	names,
	socketFiles,
	pressure,
	logging,
	clocks,
	environment,
}

func TestPromises(t *testing.T) {
	proxies := []*proxy{proxyd}
	if *peers {
		proxies = allProxies
		t.Cleanup(func() { results.print(os.Stdout) }) // after all cases
	}
	for _, p := range proxies {
		if why := p.find(); why != nil {
			results.leaveOut(p, why)
			t.Run(p.name, func(t *testing.T) { testenv.Without(t, "%v", why) })
			continue
		}
		for _, theme := range themes {
			for _, c := range theme.cases {
				t.Run(p.name+"/"+theme.name+"/"+c.promise, func(t *testing.T) {
					t.Parallel()
					r := record(t, func(t testing.TB) { c.run(t, p) })
					results.add(c, p, r)
					t.Log(r.log.String())
					switch {
					case r.verdict() == untried:
						testenv.Without(t, "%s", r.why)
					case p == proxyd && r.verdict() != ok: // it has all the settings that are asked for
						t.Error(r.why)
					case r.verdict() == unfit:
						t.Skip(r.why)
					}
				})
			}
		}
	}
}
