package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"example.org/socketproxy/internal/sandbox"
	"example.org/socketproxy/internal/setup"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// creation is one run of create.
type creation struct {
	ctl *ctl
	setup.Settings
	place                  setup.Place
	force, dryRun, noStart bool
	words                  []string // what there is to know beside the files
}

func (c *ctl) createCommand() *cobra.Command {
	n := &creation{ctl: c}
	command := &cobra.Command{
		Use:               "create NAME --listen=ADDRESS TARGET",
		Short:             "Set up an instance, with any options of proxyd(8), and let it listen",
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(command *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("create takes two arguments, the name of the instance and its target: proxyctl create web --listen=8080 127.0.0.1:3000")
			}
			n.Name, n.Target = args[0], args[1]
			if err := n.create(command.Context()); err != nil {
				return fmt.Errorf("cannot create %s: %w", n.Name, err)
			}
			return nil
		},
	}
	flags := command.Flags()
	flags.SortFlags = false
	flags.StringArrayVar(&n.Listen, "listen", nil, "Take clients at `ADDRESS`, written as in proxyd(8); may be repeated")
	service := func(value *string) func(string) error {
		return func(given string) (err error) {
			*value, err = setup.ServiceName(given)
			return err
		}
	}
	flags.Func("backend", "Start the service `UNIT` with the first client, and stop it with the proxy", service(&n.Backend))
	flags.Func("network-of", "Connect in the network of the service `UNIT`, which is cut off from others", service(&n.NetworkOf))
	flags.Func("allow", "Only clients of these networks may connect: `CIDR`, several separated by commas", n.addAllowed)
	flags.BoolVar(&n.Runtime, "runtime", false, "Until the next boot only")
	flags.BoolVar(&n.noStart, "no-start", false, "Write the files, enable and start nothing")
	flags.BoolVar(&n.force, "force", false, "Overwrite the files of an instance with that name")
	flags.BoolVar(&n.dryRun, "dry-run", false, "Print the files, and change nothing")
	n.proxydOptions(flags)
	return command
}

// ofProxyd are the options of proxyd(8) that create passes on. Neither are those that the unit gives.
var ofProxyd = []string{
	"connections-max", "connections-max-per-source", "source-prefix-ipv6", "exit-idle-time", "proxy-protocol", "accept-proxy",
	"accept-proxy-timeout", "connect-timeout", "connect-retry", "drain-timeout", "idle-timeout", "half-close-timeout", "abort-on-close",
	"tcp-user-timeout", "coalesce", "hand-over", "bus", "log-level",
}

func (c *creation) proxydOptions(flags *pflag.FlagSet) {
	for _, name := range ofProxyd {
		short := ""
		if name == "connections-max" {
			short = "c"
		}
		flags.FuncP(name, short, "", func(value string) error {
			c.Options = append(c.Options, "--"+name+"="+value)
			return nil
		})
		flags.Lookup(name).Hidden = true // proxyd(8) describes them
	}
}

func (c *creation) addAllowed(value string) error {
	for text := range strings.SplitSeq(value, ",") {
		prefix, err := netip.ParsePrefix(text)
		if address, addressErr := netip.ParseAddr(text); addressErr == nil && address.Zone() == "" {
			prefix, err = netip.PrefixFrom(address, address.BitLen()), nil
		}
		if err != nil {
			return fmt.Errorf("%q is neither an address nor a network such as 192.0.2.0/24", text)
		}
		c.Allow = append(c.Allow, prefix.Masked())
	}
	return nil
}

func (c *creation) create(ctx context.Context) error {
	var err error
	if c.place, err = c.ctl.placeOfFiles(); err != nil {
		return err
	}
	if err := c.checkArguments(ctx); err != nil {
		return err
	}
	if c.dryRun && !c.onSystemd() {
		c.words = append(c.words, "systemd was not asked about the units.")
	} else if err := c.checkUnits(ctx); err != nil {
		return err
	}
	if !c.ctl.destination.User { // whose unit hides nothing
		c.findTarget()
	}
	files, err := c.Files(c.place)
	if err != nil {
		return err
	}
	if c.dryRun {
		for i, file := range files {
			if i > 0 {
				fmt.Fprintln(c.ctl.stdout)
			}
			fmt.Fprintf(c.ctl.stdout, "# %s\n%s", file.Path, file.Text)
		}
		for _, word := range c.words {
			fmt.Fprintf(c.ctl.stderr, "proxyctl: %s\n", word)
		}
		return nil
	}
	if existing := setup.Existing(files); len(existing) > 0 && !c.force {
		return fmt.Errorf("there is one already: %s; --force overwrites its files", existing[len(existing)-1])
	}
	if err := c.verify(ctx, files); err != nil {
		return err
	}
	if err := c.probe(ctx); err != nil {
		return err
	}
	former, _, _ := c.place.Made(c.Name) // those that others have written stay
	change, err := c.place.Write(files, former...)
	if err != nil {
		return err
	}
	if err := c.put(ctx); err != nil {
		// Also after Ctrl-C, which has ended ctx.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
		defer cancel()
		return errors.Join(err, c.takeBack(ctx, change, len(former) > 0))
	}
	for _, file := range files {
		c.ctl.say("Wrote %s.", file.Path)
	}
	for _, word := range c.words {
		c.ctl.say("%s", word)
	}
	if c.noStart {
		c.ctl.say("To start it: %s enable --now %s", c.ctl.tool("systemctl"), setup.Socket(c.Name))
		return nil
	}
	c.ctl.say("%s listens on %s; its first client starts %s.", c.Name, strings.Join(c.Listen, " and "), setup.Unit(c.Name))
	return nil
}

// undoTime bounds what is done to take a failed create back.
const undoTime = 30 * time.Second

// checkArguments finds the mistakes that need nothing of systemd. The target and the options are proxyd's to judge.
func (c *creation) checkArguments(ctx context.Context) error {
	if err := setup.CheckName(c.Name); err != nil {
		return err
	}
	if len(c.Listen) == 0 {
		return errors.New("it needs an address to listen on, such as --listen=8080")
	}
	if c.Allow != nil {
		for _, address := range c.Listen {
			if strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@") {
				return fmt.Errorf("--allow= is about networks, and %s is an AF_UNIX socket", address)
			}
		}
	}
	proxyd, err := findProxyd()
	if err != nil {
		return err
	}
	args := append([]string{"--check", "--name=" + c.Name}, c.Options...)
	for _, address := range c.Listen {
		args = append(args, "--listen="+address)
	}
	if c.ctl.destination.User && (c.NetworkOf != "" || c.Allow != nil) {
		return errors.New("--network-of= and --allow= need rights that a user's manager does not have")
	}
	return complaintOf(exec.CommandContext(ctx, proxyd, append(args, "--", c.Target)...))
}

func lowerFirst(text string) string {
	first := min(1, len(text))
	return strings.ToLower(text[:first]) + text[first:]
}

// onSystemd reports whether there is a service manager to ask: sd_booted(3).
func (c *creation) onSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// checkUnits looks for the units that there have to be.
func (c *creation) checkUnits(ctx context.Context) error {
	if !c.onSystemd() {
		return errors.New("systemd does not manage this machine; proxyd --listen= works without")
	}
	if err := c.ctl.connect(ctx); err != nil {
		return err
	}
	for _, template := range []string{setup.Socket(""), setup.Unit("")} {
		switch there, err := c.ctl.bus.HasTemplate(ctx, template); {
		case err != nil:
			return fmt.Errorf("cannot look for %s: %w", template, err)
		case !there:
			return fmt.Errorf("there is no %s; install the units of proxyd", template)
		}
	}
	for _, unit := range []string{c.Backend, c.NetworkOf} {
		if unit == "" {
			continue
		}
		switch state, err := c.ctl.bus.LoadState(ctx, unit); {
		case err != nil:
			return fmt.Errorf("cannot look for %s: %w", unit, err)
		case state == "not-found":
			return fmt.Errorf("there is no service %s", unit)
		case state != "loaded":
			return fmt.Errorf("systemd has %s as %s; systemctl status %s says more", unit, state, unit)
		}
	}
	if c.NetworkOf != "" {
		private, active := c.ctl.bus.HasPrivateNetwork(ctx, c.NetworkOf)
		c.Isolate = !private
		if c.Isolate && active {
			c.words = append(c.words, fmt.Sprintf("To cut %s off from other networks: systemctl restart %s", c.NetworkOf, c.NetworkOf))
		}
	}
	return nil
}

var plainPath = pattern(`^[A-Za-z0-9._/@+-]+$`)

// findTarget looks at an AF_UNIX socket as the sandbox sees it: who may use it, and where it is.
func (c *creation) findTarget() {
	if !strings.HasPrefix(c.Target, "/") {
		return
	}
	if shows := sandbox.Show(c.Target); shows != nil {
		if plainPath().MatchString(c.Target) {
			c.Service = append(c.Service, shows...)
			c.words = append(c.words, fmt.Sprintf("The sandbox hides %s; this instance has %s.", c.Target, strings.Join(shows, " and ")))
		} else {
			c.words = append(c.words, fmt.Sprintf("The sandbox hides %s; proxyd@.service(5) says how to show it.", c.Target))
		}
	}
	info, err := os.Stat(c.Target)
	if errors.Is(err, fs.ErrNotExist) {
		c.words = append(c.words, fmt.Sprintf("There is no %s yet: whether the user proxyd may connect to it is to be seen.", c.Target))
	}
	if err != nil {
		return
	}
	const write = 0o002
	mode := info.Mode().Perm()
	if mode&write != 0 {
		return
	}
	gid := info.Sys().(*syscall.Stat_t).Gid
	group, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10))
	if mode&(write<<3) == 0 || gid == 0 || err != nil {
		c.words = append(c.words, fmt.Sprintf("Only its owner may connect to %s: the user proxyd may not.", c.Target))
		return
	}
	c.Service = append(c.Service, "SupplementaryGroups="+group.Name)
	c.words = append(c.words, fmt.Sprintf("The group %s may connect to %s; this instance is in it.", group.Name, c.Target))
}

// verify has systemd read the files before anything else does, in another directory.
func (c *creation) verify(ctx context.Context, files []setup.File) error {
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		return nil // the start says what is wrong, if anything is
	}
	dir, err := os.MkdirTemp("", "proxyctl-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, file := range files {
		if filepath.Ext(filepath.Dir(file.Path)) != ".d" {
			continue
		}
		drop := filepath.Join(dir, filepath.Base(filepath.Dir(file.Path)))
		if err := os.MkdirAll(drop, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(drop, filepath.Base(file.Path)), []byte(file.Text), 0o644); err != nil {
			return err
		}
	}
	analyze := exec.CommandContext(ctx, program, "verify", c.ctl.manager(), "--man=no", "--recursive-errors=no", setup.Socket(c.Name), setup.Unit(c.Name))
	analyze.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":", "SYSTEMD_COLORS=no")
	output, _ := analyze.CombinedOutput() // its status counts what others have wrong in their units
	for line := range strings.Lines(string(output)) {
		if _, complaint, ok := strings.Cut(strings.TrimSpace(line), dir+"/"); ok {
			_, complaint, _ = strings.Cut(complaint, ": ")
			return fmt.Errorf("systemd: %s", lowerFirst(complaint))
		}
	}
	return nil
}

// probe listens itself for a moment: systemd, which does so in a process of its own, reports any failure as an I/O error.
func (c *creation) probe(ctx context.Context) error {
	if c.force || c.noStart { // the addresses may be those it listens on now
		return nil
	}
	for _, address := range c.Listen {
		at := address
		if port, err := strconv.ParseUint(address, 10, 16); err == nil {
			at = fmt.Sprintf(":%d", port)
		}
		if _, err := netip.ParseAddrPort(at); err != nil && at == address {
			continue // of another family, or with an interface
		}
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", at)
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return fmt.Errorf("cannot listen on %s: %w", address, errno)
		}
		if err == nil {
			listener.Close()
		}
	}
	return nil
}

// put brings the files into effect.
func (c *creation) put(ctx context.Context) error {
	socket := setup.Socket(c.Name)
	if c.noStart {
		return c.ctl.bus.Reload(ctx)
	}
	if err := c.ctl.bus.Enable(ctx, socket, c.Runtime); err != nil {
		return fmt.Errorf("cannot enable %s: %w", socket, err)
	}
	if err := c.ctl.bus.Reload(ctx); err != nil {
		return err
	}
	began := time.Now()
	start := c.ctl.bus.Start
	if c.force {
		start = c.ctl.bus.Restart // whatever it listens on now
	}
	if err := start(ctx, socket); err != nil {
		if reason := c.ctl.failure(ctx, socket, began); reason != "" {
			err = errors.New(reason)
		}
		return err
	}
	return nil
}

// takeBack undoes a create that has failed. An instance that was replaced listens again.
func (c *creation) takeBack(ctx context.Context, change *setup.Change, replaced bool) error {
	socket := setup.Socket(c.Name)
	_ = c.ctl.bus.Stop(ctx, socket) // fails, as what follows, with what else has failed
	_ = c.ctl.bus.Forget(ctx, socket)
	if !replaced {
		_ = c.ctl.bus.Disable(ctx, socket, c.Runtime)
	}
	if err := change.Undo(); err != nil {
		return err
	}
	_ = c.ctl.bus.Reload(ctx)
	if replaced {
		return c.ctl.bus.Start(ctx, socket)
	}
	return nil
}

// failure returns what the log says of why a unit did not start, "" where it cannot be read.
func (c *ctl) failure(ctx context.Context, unit string, since time.Time) string {
	_ = exec.CommandContext(ctx, "journalctl", "--sync").Run() // what was just logged is read too
	return c.reasonLogged(ctx, unit, fmt.Sprintf("--since=@%d.%06d", since.Unix(), since.Nanosecond()/1000))
}
