package scenarios

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"swarm/scenarios/lab"
)

// nobody has no certificate.
const nobody = "nobody"

// metrics reads them on the node's own socket, or at its port as a Prometheus with a certificate would.
func metrics(t *teller, ctx context.Context, args []string) (string, error) {
	if len(args) != 1 && len(args) != 3 {
		return "", wrongArguments("metrics NODE [PORT WHOSE]")
	}
	n, err := t.Find(ctx, args[0])
	if err != nil {
		return "", err
	}
	if len(args) == 1 {
		return scrape(ctx, "http://swarm/metrics", &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(n.RunDir(), "metrics.sock"))
		}})
	}
	security := &tls.Config{InsecureSkipVerify: true} // it is the server who shall refuse
	if args[2] != nobody {
		whose, err := t.Find(ctx, args[2])
		if err != nil {
			return "", err
		}
		if security, err = memberTLS(whose); err != nil {
			return "", err
		}
	}
	return scrape(ctx, "https://"+n.Address+":"+args[1]+"/metrics", &http.Transport{DialContext: t.Lab.Dial, TLSClientConfig: security})
}

// memberTLS is what the documentation has Prometheus use on a node, for reading a manager's metrics.
func memberTLS(n *lab.Node) (*tls.Config, error) {
	file := filepath.Join(n.DataDir(), "certificates", "identity.pem")
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		return nil, err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(content) {
		return nil, fmt.Errorf("%s holds no root", file)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: "swarm-manager"}, nil
}

func scrape(ctx context.Context, url string, transport *http.Transport) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askMax)
	defer cancel()
	transport.DisableKeepAlives = true
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	return string(body), err
}
