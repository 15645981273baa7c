"use strict";(self.rspackChunksnakepit_kernel=self.rspackChunksnakepit_kernel||[]).push([[266],{646(e,t,n){var r=n(601),a=n.n(r),o=n(314),i=(n.n(o))()(a());i.push([e.id,`/* The sidebar of pools and workers, in the colours of JupyterLab's theme. */
.jp-Snakepit {
  overflow: auto;
  background: var(--jp-layout-color1);
  color: var(--jp-ui-font-color1);
  font-family: var(--jp-ui-font-family);
  font-size: var(--jp-ui-font-size1);
  line-height: 1.45;
}
.jp-Snakepit-content { padding: 4px 0; }
.jp-Snakepit h2, .jp-Snakepit h3 {
  min-width: 0; margin: 0; overflow: hidden; font-size: inherit; font-weight: 600;
  text-overflow: ellipsis; white-space: nowrap;
}
.jp-Snakepit ul { margin: 0; padding: 0; list-style: none; }
.jp-Snakepit li { padding: 3px 0; }
.jp-Snakepit-kernel { padding: 4px 12px 10px; border-bottom: 1px solid var(--jp-border-color2); }
.jp-Snakepit-kernel > section { margin-top: 6px; padding-left: 8px; }
.jp-Snakepit-line { display: flex; align-items: center; gap: 6px; min-height: 24px; }
.jp-Snakepit-actions { display: flex; flex: none; gap: 2px; margin-left: auto; }
.jp-Snakepit-button {
  display: inline-flex; align-items: center; justify-content: center; width: 22px; height: 22px;
  padding: 0; border: none; border-radius: var(--jp-border-radius); background: transparent;
  color: inherit; cursor: pointer;
}
.jp-Snakepit-button:hover { background: var(--jp-layout-color2); }
.jp-Snakepit-button:focus-visible { outline: 1px solid var(--jp-brand-color1); }
.jp-Snakepit-button:disabled { cursor: default; opacity: 0.4; }
.jp-Snakepit-state {
  min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap;
}
.jp-Snakepit-state::before {
  content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 6px;
  border-radius: 50%; background: var(--jp-ui-font-color2);
}
.jp-Snakepit-state[data-state="ready"]::before { background: var(--jp-success-color1); }
.jp-Snakepit-state[data-state="busy"]::before { background: var(--jp-brand-color1); }
.jp-Snakepit-state:is([data-state="reserved"], [data-state="starting"], [data-state="stopping"],
  [data-state="tainted"])::before { background: var(--jp-warn-color1); }
.jp-Snakepit-state[data-state="dead"]::before { background: var(--jp-error-color1); }
.jp-Snakepit-running {
  padding-left: 14px; overflow: hidden; font-family: var(--jp-code-font-family);
  font-size: var(--jp-code-font-size); text-overflow: ellipsis; white-space: nowrap;
}
.jp-Snakepit-quiet { color: var(--jp-ui-font-color2); font-size: var(--jp-ui-font-size0); }
.jp-Snakepit li .jp-Snakepit-quiet { padding-left: 14px; }
.jp-Snakepit-empty { padding: 4px 12px; color: var(--jp-ui-font-color2); }
.jp-Snakepit-empty code { background: var(--jp-layout-color2); color: var(--jp-ui-font-color1); }
.jp-Snakepit-problem { color: var(--jp-error-color1); overflow-wrap: anywhere; white-space: pre-wrap; }
.jp-Snakepit [role="alert"] > .jp-Snakepit-problem { display: flex; gap: 6px; padding: 4px 12px; }
.jp-Snakepit [role="alert"] > .jp-Snakepit-problem .jp-Snakepit-button { flex: none; margin-left: auto; }
.jp-Snakepit-log {
  margin: 0; padding: 8px; overflow: auto; background: var(--jp-layout-color0);
  color: var(--jp-content-font-color1); font-family: var(--jp-code-font-family);
  font-size: var(--jp-code-font-size); white-space: pre-wrap;
}
`,""]),n.d(t,{},{A:i})},314(e){e.exports=function(e){var t=[];return t.toString=function(){return this.map(function(t){var n="",r=void 0!==t[5];return t[4]&&(n+="@supports (".concat(t[4],") {")),t[2]&&(n+="@media ".concat(t[2]," {")),r&&(n+="@layer".concat(t[5].length>0?" ".concat(t[5]):""," {")),n+=e(t),r&&(n+="}"),t[2]&&(n+="}"),t[4]&&(n+="}"),n}).join("")},t.i=function(e,n,r,a,o){"string"==typeof e&&(e=[[null,e,void 0]]);var i={};if(r)for(var p=0;p<this.length;p++){var s=this[p][0];null!=s&&(i[s]=!0)}for(var l=0;l<e.length;l++){var c=[].concat(e[l]);r&&i[c[0]]||(void 0!==o&&(void 0===c[5]||(c[1]="@layer".concat(c[5].length>0?" ".concat(c[5]):""," {").concat(c[1],"}")),c[5]=o),n&&(c[2]&&(c[1]="@media ".concat(c[2]," {").concat(c[1],"}")),c[2]=n),a&&(c[4]?(c[1]="@supports (".concat(c[4],") {").concat(c[1],"}"),c[4]=a):c[4]="".concat(a)),t.push(c))}},t}},601(e){e.exports=function(e){return e[1]}},665(e,t,n){n.r(t);var r=n(72),a=n.n(r),o=n(825),i=n.n(o),p=n(659),s=n.n(p),l=n(56),c=n.n(l),d=n(540),u=n.n(d),f=n(113),v=n.n(f),h=n(646),j={};j.styleTagTransform=v(),j.setAttributes=c(),j.insert=s().bind(null,"head"),j.domAPI=i(),j.insertStyleElement=u(),a()(h.A,j);let g=h.A&&h.A.locals?h.A.locals:void 0;n.d(t,{},{default:g})},72(e){var t=[];function n(e){for(var n=-1,r=0;r<t.length;r++)if(t[r].identifier===e){n=r;break}return n}function r(e,r){for(var a={},o=[],i=0;i<e.length;i++){var p=e[i],s=r.base?p[0]+r.base:p[0],l=a[s]||0,c="".concat(s," ").concat(l);a[s]=l+1;var d=n(c),u={css:p[1],media:p[2],sourceMap:p[3],supports:p[4],layer:p[5]};if(-1!==d)t[d].references++,t[d].updater(u);else{var f=function(e,t){var n=t.domAPI(t);return n.update(e),function(t){t?(t.css!==e.css||t.media!==e.media||t.sourceMap!==e.sourceMap||t.supports!==e.supports||t.layer!==e.layer)&&n.update(e=t):n.remove()}}(u,r);r.byIndex=i,t.splice(i,0,{identifier:c,updater:f,references:1})}o.push(c)}return o}e.exports=function(e,a){var o=r(e=e||[],a=a||{});return function(e){e=e||[];for(var i=0;i<o.length;i++){var p=n(o[i]);t[p].references--}for(var s=r(e,a),l=0;l<o.length;l++){var c=n(o[l]);0===t[c].references&&(t[c].updater(),t.splice(c,1))}o=s}}},659(e){var t={};e.exports=function(e,n){var r=function(e){if(void 0===t[e]){var n=document.querySelector(e);if(window.HTMLIFrameElement&&n instanceof window.HTMLIFrameElement)try{n=n.contentDocument.head}catch(e){n=null}t[e]=n}return t[e]}(e);if(!r)throw Error("Couldn't find a style target. This probably means that the value for the 'insert' parameter is invalid.");r.appendChild(n)}},540(e){e.exports=function(e){var t=document.createElement("style");return e.setAttributes(t,e.attributes),e.insert(t,e.options),t}},56(e,t,n){e.exports=function(e){var t=n.nc;t&&e.setAttribute("nonce",t)}},825(e){e.exports=function(e){if("u"<typeof document)return{update:function(){},remove:function(){}};var t=e.insertStyleElement(e);return{update:function(n){var r,a,o;r="",n.supports&&(r+="@supports (".concat(n.supports,") {")),n.media&&(r+="@media ".concat(n.media," {")),(a=void 0!==n.layer)&&(r+="@layer".concat(n.layer.length>0?" ".concat(n.layer):""," {")),r+=n.css,a&&(r+="}"),n.media&&(r+="}"),n.supports&&(r+="}"),(o=n.sourceMap)&&"u">typeof btoa&&(r+="\n/*# sourceMappingURL=data:application/json;base64,".concat(btoa(unescape(encodeURIComponent(JSON.stringify(o))))," */")),e.styleTagTransform(r,t,e.options)},remove:function(){var e;null===(e=t).parentNode||e.parentNode.removeChild(e)}}}},113(e){e.exports=function(e,t){if(t.styleSheet)t.styleSheet.cssText=e;else{for(;t.firstChild;)t.removeChild(t.firstChild);t.appendChild(document.createTextNode(e))}}}}]);