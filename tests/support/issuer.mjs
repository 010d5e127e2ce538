// An OAuth server (oidc-provider) that hands out JWT access tokens by client_credentials, for one resource.
// Arguments: the folder of node_modules, a port. Each line on standard input is JSON: {"clients": {ID: [ROLE, ...]},
// "resource": URL, "ttl": SECONDS, "jwks": {"keys": [...]}, "alg": NAME}; it is answered with "ready", and from then on
// the server is one with these keys, as after a rotation.
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const [folder, port] = process.argv.slice(2);
const resolved = createRequire(`${folder}/`).resolve("oidc-provider");
const { Provider } = await import(pathToFileURL(resolved));
const issuer = `http://127.0.0.1:${port}`;
const scopes = ["tools:read", "tools:probe", "tools:scan", "tools:intrusive", "runs:read", "admin"];
let answer = (_, response) => response.writeHead(503).end();

function provider({ clients, resource, ttl, jwks, alg }) {
  const made = new Provider(issuer, {
    clients: Object.keys(clients).map((id) => ({
      client_id: id,
      client_secret: `secret-of-${id}`,
      grant_types: ["client_credentials"],
      response_types: [],
      redirect_uris: [],
      token_endpoint_auth_method: "client_secret_basic",
      id_token_signed_response_alg: alg,
    })),
    jwks,
    scopes,
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        defaultResource: () => resource,
        useGrantedResource: () => true,
        getResourceServerInfo: (_, asked) => ({
          scope: scopes.join(" "),
          audience: asked,
          accessTokenTTL: ttl,
          accessTokenFormat: "jwt",
          jwt: { sign: { alg } },
        }),
      },
    },
    extraTokenClaims: (_, token) => ({ roles: clients[token.clientId] }),
  });
  return made.callback();
}

const server = createServer((request, response) => answer(request, response));
server.listen(Number(port), "127.0.0.1", () => {
  createInterface({ input: process.stdin })
    .on("line", (line) => {
      answer = provider(JSON.parse(line));
      console.log("ready");
    })
    .on("close", () => process.exit(0));
});
