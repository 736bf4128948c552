package e2e

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"example.org/socketproxy/internal/proctest"
	"example.org/socketproxy/internal/testenv"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

var pictures = flag.String("pictures", "", "leave pictures of the Cockpit page in this directory")

// outsidePort makes a TCP port of a machine one of the machine that the test runs on, where its browser is.
func (m *machine) outsidePort(t *testing.T, address string) (outside string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testenv.Must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := m.dial("tcp", address)
			if err != nil {
				near.Close()
				continue
			}
			go func() {
				defer near.Close()
				_, _ = io.Copy(near, far)
			}()
			go func() {
				defer far.Close()
				_, _ = io.Copy(far, near)
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

// browser is one that a user of the machine is logged in with.
type browser struct {
	t       *testing.T
	ctx     context.Context
	address string
}

func (m *machine) browse(t *testing.T, user, password string) *browser {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(1200, 900), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("lang", "en-US"))
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	testenv.Must(t, chromedp.Do(ctx)) // which starts it, for as long as this context lasts
	ctx, cancel = context.WithTimeout(ctx, 6*proctest.Patience)
	t.Cleanup(cancel)
	b := &browser{t, ctx, m.outsidePort(t, "127.0.0.1:9090")}
	b.does("log in",
		chromedp.Navigate("http://"+b.address+"/"),
		chromedp.WaitVisible("#login-user-input"),
		chromedp.SendKeys("#login-user-input", user),
		chromedp.SendKeys("#login-password-input", password),
		chromedp.Click("#login-button"),
		chromedp.WaitNotPresent("#login-user-input"),
	)
	return b
}

func (b *browser) does(what string, steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		text, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
		b.t.Fatalf("%s: %v; the page says\n%s", what, err, text)
	}
}

// open goes to a place of the page, without Cockpit's frame around it.
func (b *browser) open(place string) {
	b.t.Helper()
	b.does("open "+place, chromedp.Navigate("http://"+b.address+"/cockpit/@localhost/proxyd/index.html#/"+place), chromedp.WaitReady("#page"))
}

// until waits for an expression of JavaScript to be true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	b.does(what, func(ctx context.Context, target *chromedp.Target) (void chromedp.Void, err error) {
		_, err = chromedp.Poll[bool](expression, chromedp.WithPollingTimeout(proctest.Patience))(ctx, target)
		return void, err
	})
}

// shows waits until the page has a text.
func (b *browser) shows(text string) {
	b.t.Helper()
	b.until("see "+text, fmt.Sprintf("document.body.innerText.includes(%q)", text))
}

// press clicks the button with a text, in the dialog if there is one.
func (b *browser) press(text string) {
	b.t.Helper()
	b.until("press "+text, fmt.Sprintf(`(() => {
		const buttons = [...(document.querySelector("dialog[open]") ?? document).querySelectorAll("button")];
		const button = buttons.find(b => b.offsetParent !== null && !b.disabled && (b.innerText.trim() === %q || b.ariaLabel === %q));
		button?.click();
		return button !== undefined;
	})()`, text, text))
}

// confirm presses the button of a dialog that does what the dialog is for, and waits until it is done.
func (b *browser) confirm(text string) {
	b.t.Helper()
	b.press(text)
	b.until("see the dialog go", `document.querySelector("dialog[open]") === null`)
}

// picture takes one where -pictures= asks for it.
func (b *browser) picture(name string) {
	b.t.Helper()
	if *pictures == "" {
		return
	}
	image, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	testenv.Must(b.t, err)
	testenv.Must(b.t, os.WriteFile(filepath.Join(*pictures, name+".png"), image, 0o644))
}

func TestCockpitPageShowsAndControls(t *testing.T) {
	onEachSystemd(t, testCockpitPage)
}

func testCockpitPage(t *testing.T, m *machine) {
	testenv.Need(t, "chromium", "chromium")
	testenv.Need(t, "npm", "npm")
	testenv.Need(t, "/usr/lib/cockpit/cockpit-ws", "cockpit-ws")
	if text, err := output(makefile("install-proxyd-cockpit", "PREFIX=/usr", "DESTDIR="+m.outside("/"))); err != nil {
		testenv.Without(t, "cannot build the Cockpit page: %v\n%s", err, text)
	}
	for _, user := range []string{"warden", "guest"} {
		m.run(t, "useradd", "--create-home", "--shell=/bin/bash", user)
		m.run(t, "sh", "-c", "echo "+user+":secret-9 | chpasswd")
		t.Cleanup(func() { m.run(t, "userdel", "--force", "--remove", user) })
	}
	m.run(t, "usermod", "--append", "--groups=systemd-journal", "warden")
	m.write(t, "/etc/polkit-1/rules.d/10-warden.rules", `polkit.addRule(function(action, subject) {
		if (action.id.indexOf("org.example.SocketProxy1.") == 0 && subject.user == "warden") return polkit.Result.YES;
	});`)
	i := instance{name: "cockpit", target: m.echo(t, "tcp"), options: "--connections-max=40"}
	address := m.proxy(t, i)
	clients := []net.Conn{}
	for range 3 {
		clients = append(clients, m.connect(t, "tcp", address))
	}
	m.proxy(t, instance{name: "waiting", target: "127.0.0.1:1"})
	m.onBus(t, i.name)
	m.run(t, "systemctl", "start", "systemd-user-sessions.service") // which lets users log in
	m.startUnit(t, "cockpit.socket", "cockpit.service")

	if *pictures != "" {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				if n/250%2 == 0 || n%7 == 0 {
					_ = exchange(clients[2])
				}
			}
		}()
		t.Cleanup(func() { close(stop); clients[2].Close(); <-stopped })
	}
	t.Run("for a user with rights", func(t *testing.T) {
		b := m.browse(t, "warden", "secret-9")
		b.does("see it in Cockpit's frame", chromedp.Navigate("http://"+b.address+"/proxyd"), chromedp.WaitVisible("iframe[name='cockpit1:localhost/proxyd']"))
		if *pictures != "" {
			time.Sleep(3 * time.Second)
		}
		b.picture("cockpit-frame")
		b.open("")
		b.shows("3 of 40")
		b.shows("listening")
		b.picture("cockpit-list")
		b.open("cockpit")
		b.shows("3 connections")
		b.shows("reached")
		b.shows("Forwarding the clients of") // its log
		if *pictures != "" {
			time.Sleep(40 * time.Second) // for charts with something in them
		}
		b.picture("cockpit-instance")

		b.press("Limits")
		b.does("set a limit", chromedp.SetValue("#limit-connections", "50"))
		b.confirm("Set")
		b.shows("3 of 50")

		b.does("filter", chromedp.SendKeys("input[type=search]", "no such client"))
		b.shows("0 connections match")
		b.does("filter no more", chromedp.SendKeys("input[type=search]", strings.Repeat("\b", len("no such client"))))
		b.press("Close connection 1 of " + clients[0].LocalAddr().String())
		b.shows("Both its ends are reset at once.")
		b.press("Cancel")
		testenv.Must(t, exchange(clients[0]))
		b.press("Close connection 1 of " + clients[0].LocalAddr().String())
		b.confirm("Close connection")
		b.shows("2 connections")
		if err := exchange(clients[0]); err == nil {
			t.Error("a connection that was closed goes on")
		}

		b.press("Drain")
		b.does("for ever", chromedp.SetValue("#drain-timeout", "infinity"))
		b.picture("cockpit-drain-dialog")
		b.confirm("Drain")
		b.shows("2 connections left.")
		b.picture("cockpit-drain")
		b.press("Resume")
		b.confirm("Resume")
		b.shows("running")
		testenv.Must(t, m.ask("tcp", address))

		b.does("be dark", func(ctx context.Context, target *chromedp.Target) (void chromedp.Void, err error) {
			_, err = cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}},
			})
			return void, err
		})
		b.does("be dark", chromedp.WaitReady("html.pf-v6-theme-dark"))
		b.picture("cockpit-dark")
		b.does("be a telephone", chromedp.EmulateViewport(390, 844))
		b.picture("cockpit-telephone")
		wide, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
		testenv.Must(t, err)
		testenv.Equal(t, "it is wider than a telephone", wide, false)
		b.open("waiting")
		b.shows("its first client starts it")
		b.open("none-such")
		b.shows("No instance has this name")
	})
	t.Run("for a user without rights", func(t *testing.T) {
		b := m.browse(t, "guest", "secret-9")
		b.open("cockpit")
		b.shows("Connections are shown to administrators")
		b.shows("2 of 50")
		b.press("Drain")
		b.press("Drain")
		b.shows("You have no right to do this.")
		b.picture("cockpit-guest")
		testenv.Must(t, m.ask("tcp", address))
	})
	t.Run("with thousands of connections", func(t *testing.T) {
		crowded := instance{name: "crowded", target: i.target, options: "--connections-max=3000"}
		address := m.proxy(t, crowded)
		const clients = 2500
		for range clients {
			m.connect(t, "tcp", address)
		}
		b := m.browse(t, "warden", "secret-9")
		b.open("crowded")
		b.shows("2,500 connections, page 1 of 50")
		began := time.Now()
		b.press("Next page")
		b.shows("page 2 of 50")
		b.press("Previous page")
		for _, first := range []string{"1", "2500"} {
			b.does("sort by ID", chromedp.Click("th:first-child button"))
			b.until("see "+first+" first", `document.querySelector("section table tbody td").textContent === "`+first+`"`)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("four clicks took %v", took)
		}
	})
	t.Run("where the instance ends and comes back", func(t *testing.T) {
		b := m.browse(t, "warden", "secret-9")
		b.open("cockpit")
		b.shows("2 connections")
		m.run(t, "systemctl", "stop", i.unit())
		b.shows("its first client starts it")
		testenv.Must(t, m.ask("tcp", address))
		b.shows("0 of 40")
	})
}
