// Command lvsd is a Linux Virtual Server director in user space: it balances TCP and UDP between real servers by
// rewriting packets that a tun device brings it. README.md tells how to use it, docs/architecture.md how it works.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/lvsd/lvsd/balancer/admin"
)

// version is set by the Makefile.
var version = "unknown"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// Exit codes.
const (
	exitFailure = 1 // what was asked for could not be done, or is not so
	exitUsage   = 2 // the command line is wrong
)

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return 0
	}
	var usage *usageError
	if errors.As(err, &usage) {
		fmt.Fprintf(stderr, "lvsd: %v\nTry `%s --help`.\n", err, cmd.CommandPath())
		return exitUsage
	}
	if !errors.Is(err, errReported) {
		fmt.Fprintf(stderr, "lvsd: %v\n", err)
	}
	return exitFailure
}

// errReported is the error of a command that has already said what is wrong.
var errReported = errors.New("reported")

// usageError is a mistake in the command line.
type usageError struct{ error }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "lvsd",
		Short: "Linux Virtual Server in user space",
		Long: "lvsd balances TCP and UDP between real servers as IPVS does with NAT, without the kernel module: all it\n" +
			"needs is /dev/net/tun and CAP_NET_ADMIN in its network namespace.",
		Example: "  lvsd demo                    see it work, in namespaces of its own\n" +
			"  lvsd check -c lvsd.toml      is the file right?\n" +
			"  lvsd doctor -c lvsd.toml     can this machine do it?\n" +
			"  lvsd run -c lvsd.toml        balance\n" +
			"  lvsd status                  what is it doing?",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(newRun(), newCheck(), newDoctor(), newStatus(), newDemo(), newVersion())
	markUsageErrors(root)
	return root
}

// markUsageErrors makes the mistakes that cobra finds in a command line usage errors.
func markUsageErrors(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return &usageError{err} })
	if args := cmd.Args; args != nil {
		cmd.Args = func(cmd *cobra.Command, a []string) error {
			if err := args(cmd, a); err != nil {
				return &usageError{err}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		markUsageErrors(sub)
	}
}

// socketFlag adds --socket, whose default is what the environment says.
func socketFlag(cmd *cobra.Command) *string {
	return cmd.Flags().String("socket", os.Getenv("LVSD_SOCKET"),
		"path of the admin socket; also by the environment variable LVSD_SOCKET (default \""+admin.DefaultSocket+"\")")
}

// outputFlag adds -o and checks it before the command runs.
func outputFlag(cmd *cobra.Command) *string {
	format := cmd.Flags().StringP("output", "o", "text", "output format: text or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *format != "text" && *format != "json" {
			return &usageError{fmt.Errorf("output format %q is not one of text, json", *format)}
		}
		return nil
	}
	return format
}
