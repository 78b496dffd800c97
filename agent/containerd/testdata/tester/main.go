// Program tester is what the containers of the root tests run.
package main

import (
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Println("hello")
		return
	}
	verb, rest := os.Args[1], os.Args[2:]
	switch verb {
	case "echo":
		fmt.Println(strings.Join(rest, " "))
		fmt.Fprintln(os.Stderr, "err "+strings.Join(rest, " "))
	case "exit":
		code, _ := strconv.Atoi(rest[0])
		os.Exit(code)
	case "count":
		n, _ := strconv.Atoi(rest[0])
		for i := range n {
			fmt.Println("line", i+1)
		}
	case "sleep":
		fmt.Println("sleeping")
		time.Sleep(time.Hour)
	case "graceful":
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGTERM, syscall.SIGUSR1)
		fmt.Println("ready")
		fmt.Println("got", <-c)
		os.Exit(7)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("ready")
		time.Sleep(time.Hour)
	case "fill":
		var kept [][]byte
		for {
			b := make([]byte, 1<<20)
			for i := range b {
				b[i] = 1
			}
			kept = append(kept, b)
		}
	case "cat":
		for _, name := range rest {
			text, err := os.ReadFile(name)
			if err != nil {
				fmt.Println(err)
			}
			fmt.Print(string(text))
		}
	case "write":
		if err := os.WriteFile(rest[0], []byte(rest[1]), 0o644); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	case "who":
		groups, _ := os.Getgroups()
		dir, _ := os.Getwd()
		name, _ := os.Hostname()
		fmt.Println(os.Getuid(), os.Getgid(), groups, dir, name)
	case "env":
		for _, name := range rest {
			fmt.Println(name + "=" + os.Getenv(name))
		}
	case "links":
		all, _ := net.Interfaces()
		for _, i := range all {
			fmt.Println(i.Name, i.Flags)
		}
	}
}
