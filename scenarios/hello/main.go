// Command hello is the program inside the image that stories and the demo run: a small server that says where it answers,
// and a few ways to misbehave. scenarios/hello/pack makes the image of it.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

const usage = `hello [serve [PORT]]    answer HTTP with host name and address; 8080
hello count [PERIOD]    print numbered lines; 100ms
hello eat [MEGABYTES]   use that much memory and keep it; 1024
hello exit [CODE]       leave at once; 1
hello sleep             do nothing until asked to stop
`

func main() {
	// As process 1 of a container nothing stops it but a handler of its own.
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	args := append(os.Args[1:], "", "")
	if args[0] == "" {
		args[0] = "serve"
	}
	os.Exit(run(ctx, args[0], args[1]))
}

func run(ctx context.Context, verb, arg string) int {
	switch verb {
	case "serve":
		return serve(ctx, or(arg, "8080"))
	case "count":
		period, err := time.ParseDuration(or(arg, "100ms"))
		if err != nil {
			return complain(err)
		}
		count(ctx, period)
		return 0
	case "eat":
		eat(number(arg, 1024))
		<-ctx.Done()
		return 0
	case "exit":
		fmt.Println("leaving as told")
		return number(arg, 1)
	case "sleep":
		<-ctx.Done()
		return 0
	}
	fmt.Fprint(os.Stderr, usage)
	return 2
}

// serve answers every request with one line: "hello from HOSTNAME at ADDRESS:PORT".
func serve(ctx context.Context, port string) int {
	hostname, err := os.Hostname()
	if err != nil {
		return complain(err)
	}
	server := &http.Server{
		Addr:              ":" + port,
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
			fmt.Fprintf(w, "hello from %s at %v\n", hostname, local)
			fmt.Printf("answered %s\n", r.RemoteAddr)
		}),
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	fmt.Printf("%s listens on port %s\n", hostname, port)
	if err := server.ListenAndServe(); ctx.Err() == nil {
		return complain(err)
	}
	fmt.Println("stopped as asked")
	return 0
}

// count prints "line 1", "line 2", … so that a hole in a log can be seen.
func count(ctx context.Context, period time.Duration) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for n := 1; ; n++ {
		fmt.Printf("line %d\n", n)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// eat touches every page, because memory that is only reserved counts for nothing.
func eat(megabytes int) {
	const pageBytes = 4096
	held := make([][]byte, 0, megabytes)
	for range megabytes {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += pageBytes {
			block[i] = 1
		}
		held = append(held, block)
	}
	fmt.Printf("holding %d MB\n", len(held))
}

func or(value, otherwise string) string {
	if value == "" {
		return otherwise
	}
	return value
}

func number(arg string, otherwise int) int {
	if n, err := strconv.Atoi(arg); err == nil {
		return n
	}
	return otherwise
}

func complain(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}
